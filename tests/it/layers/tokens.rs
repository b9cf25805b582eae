//! Tokenizes Rust source and finds its paths within the crate.
//!
//! Resolves every path that starts with `crate`, `super`, `self` or, in `main.rs`, `keybearer`. Not here: which paths
//! are allowed (`layers`).

/// A word, `::`, or a single character, with its line. Comments, literals and lifetimes are dropped.
type Token = (usize, String);

/// Every path outside tests that refers to the crate, with its line, relative to the crate root. `module` is the file's
/// path.
pub fn paths(module: &[&str], source: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = &without_tests(tokens(source));
    let mut found = Vec::new();
    let mut here: Vec<String> = module.iter().map(|name| name.to_string()).collect();
    let mut inline = Vec::new(); // the depth of each `mod name {` that is open
    let (mut i, mut depth) = (0, 0usize);
    while i < tokens.len() {
        let (line, token) = &tokens[i];
        match token.as_str() {
            "mod" if is(tokens, i + 2, &["{"]) => {
                here.push(tokens[i + 1].1.clone());
                inline.push(depth);
                depth += 1;
                i += 2;
            }
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                    here.pop();
                }
            }
            // `impl Trait + use<'a>` imports nothing.
            "use" if !is(tokens, i + 1, &["<"]) => {
                i += 1;
                let mut trees = Vec::new();
                use_tree(tokens, &mut i, &[], &mut trees);
                found.extend(trees.into_iter().filter_map(|(line, path)| Some((line, resolve(&here, &path)?))));
                continue;
            }
            _ if is(tokens, i + 1, &["::"]) && (i == 0 || tokens[i - 1].1 != "::" || token == "keybearer") => {
                let mut path = vec![token.clone()];
                while is(tokens, i + 1, &["::"]) && tokens.get(i + 2).is_some_and(|next| is_name(&next.1)) {
                    path.push(tokens[i + 2].1.clone());
                    i += 2;
                }
                let resolved = resolve(&here, &path).filter(|path| !path.is_empty());
                found.extend(resolved.map(|path| (*line, path)));
            }
            _ => {}
        }
        i += 1;
    }
    found
}

fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let word = |c: char| c == '_' || c.is_alphanumeric();
    let mut found: Vec<Token> = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < text.len() {
        let start = i;
        let first_line = line;
        match at(i) {
            '/' if at(i + 1) == '/' => i = end_of(&text, i, |c| c == '\n'),
            '/' if at(i + 1) == '*' => i = block_comment(&text, i),
            '"' => {
                i = quoted(&text, i, '"');
                // `#[serde(with = "crate::config::…")]` is a path as well.
                let inside: String = text[start + 1..i.saturating_sub(1).max(start + 1)].iter().collect();
                let rooted = ["crate::", "super::", "self::"].iter().any(|root| inside.starts_with(root));
                if rooted && inside.chars().all(|c| word(c) || c == ':') {
                    found.extend(tokens(&inside).into_iter().map(|(_, token)| (first_line, token)));
                }
            }
            // A character literal, or the tick of a lifetime or label.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => i = quoted(&text, i, '\''),
            '\'' => i = end_of(&text, i + 1, |c| !word(c)),
            c if word(c) => {
                i = end_of(&text, i, |c| !word(c));
                let hashes = text[i..].iter().take_while(|c| **c == '#').count();
                let text_of: String = text[start..i].iter().collect();
                if matches!(&*text_of, "r" | "br" | "cr") && at(i + hashes) == '"' {
                    i = raw_string(&text, i + hashes + 1, hashes);
                } else if text_of == "r" && hashes == 1 && word(at(i + 1)) {
                    i += 1; // `r#type`: the name follows
                } else {
                    found.push((line, text_of));
                }
            }
            ':' if at(i + 1) == ':' => {
                found.push((line, "::".into()));
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    found.push((line, c.into()));
                }
                i += 1;
            }
        }
        line += text[start..i.min(text.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn end_of(text: &[char], from: usize, stop: impl Fn(char) -> bool) -> usize {
    text.iter().skip(from).position(|c| stop(*c)).map_or(text.len(), |length| from + length)
}

fn block_comment(text: &[char], from: usize) -> usize {
    let (mut i, mut depth) = (from, 0);
    while i < text.len() {
        match text.get(i..i + 2) {
            Some(['/', '*']) => (i, depth) = (i + 2, depth + 1),
            Some(['*', '/']) => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn quoted(text: &[char], from: usize, quote: char) -> usize {
    let mut i = from + 1;
    while i < text.len() && text[i] != quote {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(text.len())
}

fn raw_string(text: &[char], from: usize, hashes: usize) -> usize {
    let ends = |i: &usize| text[*i] == '"' && text[i + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    (from..text.len()).find(ends).map_or(text.len(), |i| i + 1 + hashes)
}

/// Drops the items, statements and fields marked `#[cfg(test)]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if is(&tokens, i, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            i = end_of_item(&tokens, i + 7);
        } else {
            kept.push(tokens[i].clone());
            i += 1;
        }
    }
    kept
}

fn is(tokens: &[Token], from: usize, expected: &[&str]) -> bool {
    expected.iter().enumerate().all(|(i, text)| tokens.get(from + i).is_some_and(|token| token.1 == *text))
}

/// The index after the `;` or closing brace of the item at `from`; for a field or variant, of the comma or enclosing
/// brace.
fn end_of_item(tokens: &[Token], from: usize) -> usize {
    const ITEMS: [&str; 13] =
        ["mod", "fn", "impl", "use", "struct", "enum", "trait", "const", "static", "type", "async", "unsafe", "extern"];
    let mut item = false;
    let mut depth = 0usize;
    for (i, (_, token)) in tokens.iter().enumerate().skip(from) {
        item |= depth == 0 && ITEMS.contains(&token.as_str());
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => return i,
            "}" if depth == 1 => return i + 1,
            ")" | "]" | "}" => depth -= 1,
            ";" if depth == 0 => return i + 1,
            "," if depth == 0 && !item => return i + 1,
            _ => {}
        }
    }
    tokens.len()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// Collects the leaves of the `use` tree at `i`, and advances `i` past it.
fn use_tree(tokens: &[Token], i: &mut usize, prefix: &[String], found: &mut Vec<(usize, Vec<String>)>) {
    let mut path = prefix.to_vec();
    while let Some((line, token)) = tokens.get(*i) {
        match token.as_str() {
            "::" => *i += 1,
            "{" => {
                *i += 1;
                while *i < tokens.len() && !is(tokens, *i, &["}"]) {
                    let before = *i;
                    use_tree(tokens, i, &path, found);
                    if is(tokens, *i, &[","]) || *i == before {
                        *i += 1;
                    }
                }
                *i += 1;
                return;
            }
            name => {
                path.push(name.into());
                *i += 1;
                if is(tokens, *i, &["::"]) {
                    continue;
                }
                found.push((*line, path));
                if is(tokens, *i, &["as"]) {
                    *i += 2;
                }
                return;
            }
        }
    }
}

/// Resolves a path relative to the crate root; `None` for a path into another crate or a child. Empty: the root itself.
fn resolve(here: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut resolved = match path.first()?.as_str() {
        "crate" => Vec::new(),
        // Only `main.rs` refers to the library by its name.
        "keybearer" if here.is_empty() => Vec::new(),
        "self" => here.to_vec(),
        "super" => here[..here.len().saturating_sub(1)].to_vec(),
        _ => return None,
    };
    for segment in &path[1..] {
        match segment.as_str() {
            "self" => {}
            "super" => drop(resolved.pop()),
            name => resolved.push(name.into()),
        }
    }
    Some(resolved)
}
