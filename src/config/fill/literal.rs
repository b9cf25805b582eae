//! Renders a definition as JSON, with everything that refers to this machine replaced by its value.
//!
//! Kept as written: `{use: NAME}`, `{set: true}`, and keys of no known shape, which the instance reports. What the API
//! accepts in no form is a problem; then the JSON is incomplete.

use zeroize::Zeroizing;

use crate::config::reading::written::{ShapeRef, quoted, scalar};
use crate::config::reading::{Kind, NodeRef, Sink, reference, secret};

/// Each key of a map, its node, and its value unless that is null.
type Pairs<'p, 'a> = &'p [(&'a str, NodeRef<'a>, Option<NodeRef<'a>>)];

pub struct Literals<'l> {
    pub sink: &'l mut Sink,
    /// Receives the JSON.
    pub json: &'l mut String,
}

impl Literals<'_> {
    /// `None`: the value has no known shape.
    pub fn write(&mut self, node: &NodeRef<'_>, shape: Option<ShapeRef<'_>>) {
        match node.kind() {
            _ if node.is_null() => self.json.push_str("null"),
            Kind::Scalar { text, plain, .. } => self.scalar(node, (text.as_str(), *plain), shape),
            Kind::List(_) => {
                let items = node.items(self.sink).unwrap_or_default();
                self.json.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.json.push_str(if index == 0 { "" } else { "," });
                    self.write(item, shape.and_then(ShapeRef::item));
                }
                self.json.push(']');
            }
            Kind::Map(_) => {
                let pairs = node.pairs(self.sink);
                let value = |key: &str| pairs.iter().find(|(own, ..)| *own == key)?.2.as_ref();
                let (is_secret, is_script) = (ShapeRef::may_refer_to_secret, ShapeRef::is_script);
                match (value("store"), value("file").or(value("env"))) {
                    (Some(at), _) if shape.is_some_and(is_secret) => self.refuse_stored(at),
                    (None, Some(_)) if shape.is_some_and(is_secret) => self.secret(node),
                    (_, Some(file)) if shape.is_some_and(is_script) && pairs.len() == 1 => self.script(file),
                    _ => self.map(&pairs, shape),
                }
            }
        }
    }

    fn map(&mut self, pairs: Pairs<'_, '_>, shape: Option<ShapeRef<'_>>) {
        self.json.push('{');
        for (index, (key, _, value)) in pairs.iter().enumerate() {
            self.json.push_str(if index == 0 { "" } else { "," });
            self.json.push_str(&quoted(key));
            self.json.push(':');
            match value {
                Some(value) => self.write(value, shape.and_then(|shape| shape.key(key))),
                None => self.json.push_str("null"),
            }
        }
        self.json.push('}');
    }

    fn scalar(&mut self, node: &NodeRef<'_>, (text, plain): (&str, bool), shape: Option<ShapeRef<'_>>) {
        if shape.is_some_and(ShapeRef::is_path) {
            return node.problem(self.sink, "a file cannot be sent to an instance", remedy(&node.path));
        }
        let may_refer = shape.is_some() && text.contains("${");
        let filled = if may_refer { reference::text(node, self.sink) } else { None };
        let json = match filled {
            // A claim that is filled in is a string, whatever it looks like.
            Some(filled) if filled.has_reference => scalar(shape, &escaped(&Zeroizing::new(filled.value)), false),
            _ => scalar(shape, text, plain),
        };
        self.json.push_str(&Zeroizing::new(json));
    }

    fn secret(&mut self, node: &NodeRef<'_>) {
        if let Some(secret) = secret::secret(node, self.sink) {
            self.text(secret.expose());
        }
    }

    /// Sends the text of a script in place of its path.
    fn script(&mut self, file: &NodeRef<'_>) {
        let text = file.file(self.sink).and_then(|path| reference::file_text(file, &path, self.sink));
        self.json.push_str("{\"source\":");
        self.text(&text.unwrap_or_default());
        self.json.push('}');
    }

    /// A text that the instance must not read for references.
    fn text(&mut self, text: &str) {
        self.json.push_str(&Zeroizing::new(quoted(&escaped(text))));
    }

    fn refuse_stored(&mut self, at: &NodeRef<'_>) {
        let hint = "publish it under `secrets` in the instance's own file and write {use: NAME}, or write {file: PATH}";
        at.problem(self.sink, "a secret in the sealed store cannot be sent to an instance", hint);
    }
}

fn escaped(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.replace("${", "$${"))
}

/// What to write in place of a path that has no literal form.
fn remedy(path: &str) -> &'static str {
    if path.ends_with("mutual_tls.certificate") {
        "publish certificate and key under `mutual_tls_profiles` in the instance's own file, and write `mutual_tls: NAME`"
    } else if path.contains("trust[") {
        "add the certificate to `trust` in the instance's own file and remove it here, or define the connection there"
    } else {
        "define the connection in the instance's own file"
    }
}
