//! The key tables of `docs/configuration.md`: rendered from the JSON Schema, between two marker lines.
//!
//! With `KEYBEARER_BLESS=1` the test writes the tables instead of comparing them. Keys keep the order of their serde
//! twins, which the schema does not carry, so the twins' source is scanned for it.
//! Not here: the words for the types of values (`types`).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::anchor;
use super::types::{Types, flow, joined};
use crate::rig::sidecar::{program, root};

const FILE: &str = "docs/configuration.md";
const BEGIN: &str = "<!-- keys: begin -->\n";
const END: &str = "<!-- keys: end -->\n";
const BLESS: &str = "KEYBEARER_BLESS=1 cargo test --release --locked --test it -- docs::keys";

const COLUMNS_MAX: usize = 120;
/// Longer examples are left to the example configurations.
const EXAMPLE_CHARS_MAX: usize = 40;
/// Definitions with a form other than a map; their sections come last.
const SECRETS: [&str; 2] = ["secret", "compared_secret"];

#[tokio::test]
async fn the_key_tables_match_the_schema() {
    let output = program().arg("schema").output().await.expect("the command starts");
    let schema = serde_json::from_slice(&output.stdout).expect("JSON");
    let rendered = format!("<!-- Generated from the JSON Schema: {BLESS} -->\n\n{}\n", render(&schema));
    let path = root().join(FILE);
    let page = fs::read_to_string(&path).expect("a readable file");
    let (before, rest) = page.split_once(BEGIN).expect("the line that begins the tables");
    let (tables, after) = rest.split_once(END).expect("the line that ends the tables");
    if tables == rendered {
        return;
    }
    assert!(std::env::var_os("KEYBEARER_BLESS").is_some(), "the key tables of {FILE} are out of date; run {BLESS}");
    fs::write(&path, format!("{before}{BEGIN}{rendered}{END}{after}")).expect("a writable page");
}

/// A definition of the schema and the paths of the keys that refer to it.
struct Section {
    definition: String,
    paths: Vec<String>,
}

impl Section {
    fn title(&self) -> String {
        match self.definition.as_str() {
            "top" => "Top-level keys".to_owned(),
            name if SECRETS.contains(&name) => format!("Keys of a {}", name.replace('_', " ")),
            _ => format!("Keys of `{}`", self.paths[0]),
        }
    }
}

fn render(schema: &Value) -> String {
    let definitions = schema["$defs"].as_object().expect("definitions");
    let order = order_of_twins();
    let mut sections = Vec::new();
    add_sections(definitions, &order, "top", "", &mut sections);
    sections.sort_by_key(|section| SECRETS.iter().position(|name| *name == section.definition).map_or(0, |at| at + 1));
    let anchors = sections.iter().map(|section| (section.definition.clone(), anchor(&section.title()))).collect();
    let types = Types { anchors };
    let texts: Vec<_> = sections.iter().map(|section| section_text(section, definitions, &order, &types)).collect();
    texts.join("\n")
}

/// Adds the section of a definition and, depth first, those of the definitions that it mentions.
fn add_sections(definitions: &Map<String, Value>, order: &Order, name: &str, path: &str, sections: &mut Vec<Section>) {
    if let Some(known) = sections.iter_mut().find(|section| section.definition == name) {
        known.paths.push(path.to_owned());
        return;
    }
    sections.push(Section { definition: name.to_owned(), paths: vec![path.to_owned()] });
    for (key, value) in keys(name, &definitions[name], order) {
        let dot = if path.is_empty() { "" } else { "." };
        let is_list = value["items"].is_object();
        let below = format!("{path}{dot}{key}{}", if is_list { "[]" } else { "" });
        let mut found = Vec::new();
        references(value, &mut found);
        found.dedup();
        found.iter().for_each(|name| add_sections(definitions, order, name, &below, sections));
    }
}

/// Collects the definitions that a schema refers to, except `filled`: strings with references such as `${env:NAME}`.
fn references(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(members) => {
            let name = schema["$ref"].as_str().and_then(|target| target.strip_prefix("#/$defs/"));
            found.extend(name.filter(|name| *name != "filled").map(str::to_owned));
            let values = members.iter().filter(|(key, _)| *key != "examples" && *key != "default");
            values.for_each(|(_, value)| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn section_text(section: &Section, definitions: &Map<String, Value>, order: &Order, types: &Types) -> String {
    let definition = &definitions[&section.definition];
    let mut paragraphs = Vec::new();
    paragraphs.extend(definition["description"].as_str().map(str::to_owned));
    if section.paths.len() > 1 && !SECRETS.contains(&section.definition.as_str()) {
        let others: Vec<_> = section.paths[1..].iter().map(|path| format!("`{path}`")).collect();
        paragraphs.push(format!("Also of {}.", joined(&others, "and")));
    }
    paragraphs.extend(conditions(definition));
    let mut text = format!("### {}\n\n", section.title());
    if !paragraphs.is_empty() {
        text += &wrapped(&paragraphs.join(" "), "", "");
        text += "\n";
    }
    let required = definition["required"].as_array().cloned().unwrap_or_default();
    let keys = keys(&section.definition, definition, order);
    for (key, schema) in &keys {
        let mut notes = vec![types.name(schema)];
        if required.contains(&Value::from(*key)) {
            notes.push("required".to_owned());
        }
        if let Some(default) = schema.get("default") {
            notes.push(format!("default `{}`", flow(default)));
        } else if let Some(example) = schema["examples"].get(0).map(flow)
            && example.chars().count() <= EXAMPLE_CHARS_MAX
            && !types.is_self_evident(schema)
        {
            notes.push(format!("e.g. `{example}`"));
        }
        let description = schema["description"].as_str().expect("a description");
        text += &wrapped(&format!("`{key}` ({}): {description}", notes.join(", ")), "- ", "  ");
    }
    if keys.is_empty() {
        text += "None: write `{}`.\n";
    }
    text
}

/// What must hold among the keys of a map.
fn conditions(definition: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (member, amount) in [("anyOf", "At least"), ("oneOf", "Exactly")] {
        let alternatives = definition[member].as_array().into_iter().flatten();
        let keys: Vec<_> =
            alternatives.filter_map(|one| Some(format!("`{}`", one["required"].get(0)?.as_str()?))).collect();
        if keys.len() > 1 {
            found.push(format!("{amount} one of {} is required.", joined(&keys, "and")));
        }
    }
    match (definition["minProperties"].as_u64(), definition["maxProperties"].as_u64()) {
        (Some(1), Some(1)) => found.push("Exactly one key is required.".to_owned()),
        (Some(1), None) => found.push("At least one key is required.".to_owned()),
        _ => {}
    }
    let dependent = definition["dependentRequired"].as_object().into_iter().flatten();
    let pairs: Vec<_> = dependent
        .flat_map(|(key, others)| others.as_array().into_iter().flatten().map(move |other| (key.as_str(), flow(other))))
        .collect();
    for (key, other) in &pairs {
        let is_mutual = pairs.iter().any(|(one, of)| one == other && of == key);
        match is_mutual {
            false => found.push(format!("`{key}` requires `{other}`.")),
            true if *key < other.as_str() => found.push(format!("`{key}` and `{other}` require each other.")),
            true => {}
        }
    }
    found
}

/// The keys of a definition that is a map, or of its forms that are maps.
fn keys<'a>(name: &str, definition: &'a Value, order: &Order) -> Vec<(&'a str, &'a Value)> {
    let forms = definition["anyOf"].as_array().into_iter().flatten();
    let maps = forms.chain([definition]).filter_map(|form| form["properties"].as_object()).flatten();
    let mut keys: Vec<_> = maps.map(|(key, schema)| (key.as_str(), schema)).collect();
    if !SECRETS.contains(&name) {
        keys.sort_by_key(|(key, _)| order[&(name.to_owned(), (*key).to_owned())]);
    }
    keys
}

/// The position of each key in the source, by its twin's name in the schema.
type Order = HashMap<(String, String), usize>;

fn order_of_twins() -> Order {
    let mut order = Order::new();
    scan(&root().join("src/config"), &mut order);
    order
}

fn scan(folder: &Path, order: &mut Order) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a readable directory entry").path();
        if path.is_dir() {
            scan(&path, order);
            continue;
        }
        let source = fs::read_to_string(&path).unwrap_or_default();
        for twin in source.split("#[serde(rename = \"").skip(1) {
            let (name, rest) = twin.split_once('"').expect("the end of a name");
            let (fields, _) = rest.split_once("\n}").unwrap_or((rest, ""));
            for (position, line) in fields.lines().enumerate() {
                if let Some((key, _)) = line.strip_prefix("    pub ").and_then(|field| field.split_once(": Field<")) {
                    order.insert((name.to_owned(), key.to_owned()), position);
                }
            }
        }
    }
}

/// The text in lines of at most `COLUMNS_MAX`; code spans and links stay whole.
fn wrapped(text: &str, first: &str, further: &str) -> String {
    let mut lines = vec![first.to_owned()];
    let mut word = String::new();
    let (mut in_code, mut in_link) = (false, false);
    for c in text.chars().chain([' ']) {
        in_code ^= c == '`';
        in_link = !in_code && (c == '[' || in_link && c != ']');
        if c != ' ' || in_code || in_link {
            word.push(c);
            continue;
        }
        let line = lines.last_mut().expect("a line");
        let gap = if line.trim_start_matches("- ").trim().is_empty() { "" } else { " " };
        if line.chars().count() + gap.len() + word.chars().count() <= COLUMNS_MAX {
            *line += &format!("{gap}{word}");
        } else {
            lines.push(format!("{further}{word}"));
        }
        word.clear();
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
