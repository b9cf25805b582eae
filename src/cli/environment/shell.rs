//! Formats a variable for a shell, or for a file that starts containers.

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Shell {
    #[default]
    Sh,
    Fish,
    Powershell,
    Docker,
    K8s,
}

impl Shell {
    /// The line with its line break; `None` if this format cannot express the value.
    pub fn line(self, name: &str, value: &str) -> Option<String> {
        let line = match self {
            Shell::Sh => format!("export {name}='{}'\n", value.replace('\'', "'\\''")),
            Shell::Fish => format!("set -gx {name} '{}'\n", value.replace('\\', "\\\\").replace('\'', "\\'")),
            Shell::Powershell => format!("$env:{name} = '{}'\n", value.replace('\'', "''")),
            // Docker takes the rest of the line literally.
            Shell::Docker => format!("{name}={value}\n"),
            // JSON is YAML.
            Shell::K8s => format!("- name: {name}\n  value: {}\n", serde_json::Value::from(value)),
        };
        (self == Shell::K8s || !value.contains(['\n', '\r'])).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted() {
        for (shell, expected) in [
            (Shell::Sh, "export A='it'\\''s \\ \"$x\"'\n"),
            (Shell::Fish, "set -gx A 'it\\'s \\\\ \"$x\"'\n"),
            (Shell::Powershell, "$env:A = 'it''s \\ \"$x\"'\n"),
            (Shell::Docker, "A=it's \\ \"$x\"\n"),
            (Shell::K8s, "- name: A\n  value: \"it's \\\\ \\\"$x\\\"\"\n"),
        ] {
            assert_eq!(shell.line("A", "it's \\ \"$x\"").as_deref(), Some(expected), "{shell:?}");
        }
        assert_eq!(Shell::Docker.line("A", "a\nB=c"), None);
    }
}
