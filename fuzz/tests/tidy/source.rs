//! Just enough of Rust's syntax: code without comments and strings, `use` paths, functions, test modules.
//!
//! Invariant: blanked code has the line breaks of the original, so line numbers stay true.

/// A stretch of lines, counted from 1, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) name: String,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

impl Span {
    pub(crate) fn lines(&self) -> usize {
        self.last - self.first + 1
    }
}

/// The text with comments, strings and character literals turned into spaces.
pub(crate) fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = skipped_until(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none begins there.
fn skipped_until(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    match (chars[at], next) {
        ('/', Some('/')) => find(chars, at, |c, i| c[i] == '\n'),
        ('/', Some('*')) => block_comment_end(chars, at),
        ('"', _) => quoted_end(chars, at + 1, '"'),
        ('r', Some('"' | '#')) if !follows_word(chars, at) => raw_string_end(chars, at + 1).unwrap_or(at),
        ('b', Some('r')) if !follows_word(chars, at) => raw_string_end(chars, at + 2).unwrap_or(at),
        ('\'', Some('\\')) => quoted_end(chars, at + 1, '\''),
        ('\'', Some(_)) if chars.get(at + 2) == Some(&'\'') => at + 3,
        _ => at,
    }
}

fn find(chars: &[char], from: usize, matches: impl Fn(&[char], usize) -> bool) -> usize {
    (from..chars.len()).find(|&i| matches(chars, i)).unwrap_or(chars.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The character before `at` belongs to a word; a `b` of `br"..."` does not count.
fn follows_word(chars: &[char], at: usize) -> bool {
    at > 0 && is_word(chars[at - 1])
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut i = at;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                i += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    chars.len()
}

fn quoted_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut i = from;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            c if c == quote => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// `from` is at the first `#` or the quote of a raw string; `None` when it is none (`r#type`).
fn raw_string_end(chars: &[char], from: usize) -> Option<usize> {
    let hashes = chars[from..].iter().take_while(|&&c| c == '#').count();
    let open = from + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes = |c: &[char], i: usize| {
        c[i] == '"' && c.len() > i + hashes && c[i + 1..=i + hashes].iter().all(|&h| h == '#')
    };
    Some(find(chars, open + 1, closes).saturating_add(1 + hashes).min(chars.len()))
}

/// Every place where `word` stands alone in blanked code: its line.
pub(crate) fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let hit = line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        });
        if hit {
            found.push(number + 1);
        }
    }
    found
}

/// Every path that a `use` of blanked code brings in, braces opened: (line of the `use`, `tokio::net::TcpStream`).
pub(crate) fn use_paths(code: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    let mut offset = 0;
    for (index, line) in code.lines().enumerate() {
        let start = offset;
        offset += line.len() + 1;
        let trimmed = line.trim_start();
        let rest = trimmed.strip_prefix("pub ").unwrap_or(trimmed);
        let rest = rest.strip_prefix("pub(crate) ").unwrap_or(rest);
        if !rest.starts_with("use ") {
            continue;
        }
        let begin = start + (line.len() - rest.len()) + 4;
        let statement: String =
            code[begin..].chars().take_while(|&c| c != ';').filter(|c| !c.is_whitespace()).collect();
        let mut opened = Vec::new();
        open_braces("", &statement, &mut opened);
        paths.extend(opened.into_iter().map(|path| (index + 1, path)));
    }
    paths
}

fn open_braces(prefix: &str, tree: &str, out: &mut Vec<String>) {
    let Some(brace) = tree.find('{') else {
        out.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{}", &tree[..brace]);
    let inner = tree[brace + 1..].strip_suffix('}').unwrap_or(&tree[brace + 1..]);
    let mut depth = 0_usize;
    let mut start = 0;
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                open_braces(&prefix, &inner[start..at], out);
                start = at + 1;
            }
            _ => {}
        }
    }
    if start < inner.len() {
        open_braces(&prefix, &inner[start..], out);
    }
}

/// Functions with a body in blanked code, from the line of `fn` to that of the closing brace.
pub(crate) fn functions(code: &str) -> Vec<Span> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if at > 0 && is_word(char::from(bytes[at - 1])) {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|&c| is_word(c)).collect();
        let Some(open) = body_start(bytes, at + 3) else { continue };
        if !name.is_empty() {
            found.push(Span { name, first: line_of(code, at), last: line_of(code, block_end(bytes, open)) });
        }
    }
    found
}

/// Modules under `#[cfg(test)]` with their code inline, from the attribute to the closing brace.
pub(crate) fn test_modules(code: &str) -> Vec<Span> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for (at, attribute) in code.match_indices("#[cfg(test)]") {
        let rest = &code[at + attribute.len()..];
        let Some(open) = body_start(bytes, at + attribute.len()) else { continue };
        let head = rest[..open - at - attribute.len()].trim();
        if let Some(name) = head.strip_prefix("mod ") {
            let last = line_of(code, block_end(bytes, open));
            found.push(Span { name: name.trim().to_owned(), first: line_of(code, at), last });
        }
    }
    found
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The `{` that opens the body, `None` when a `;` ends the item first. Brackets and parentheses are passed over.
fn body_start(bytes: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn block_end(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0_i32;
    for (at, byte) in bytes.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len() - 1
}

#[test]
fn comments_and_literals_are_blanked_and_lines_kept() {
    let code = blank(
        "let a = \"unsafe {\\\"\"; // unsafe\nlet b = r#\"fn x(\"# ; /* a /* b */ c */ let c = '{'; let l: &'a u8;\n",
    );
    assert!(!code.contains("unsafe") && !code.contains("fn x") && !code.contains('{'), "{code}");
    assert!(code.contains("let c") && code.contains("&'a u8"), "{code}");
    assert_eq!(code.lines().count(), 2);
    assert!(blank("let r#type = b'\\''; let x = br\"}\"; r#fn();").contains("r#fn();"));
}

#[test]
fn functions_are_measured_from_fn_to_brace() {
    let code = blank(
        "trait T {\n  fn a(&self) -> [u8; 4];\n  fn b() {\n    if x { y }\n  }\n}\ntype F = fn (u8);\n",
    );
    assert_eq!(functions(&code), [Span { name: "b".into(), first: 3, last: 5 }]);
}

#[test]
fn use_trees_are_opened() {
    let code = "use tokio::{net::{TcpStream, UdpSocket},\n  sync};\npub use a::b;\n";
    let paths: Vec<String> = use_paths(code).into_iter().map(|(_, path)| path).collect();
    assert_eq!(paths, ["tokio::net::TcpStream", "tokio::net::UdpSocket", "tokio::sync", "a::b"]);
}

#[test]
fn inline_test_modules_are_found() {
    let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\n#[cfg(test)]\nmod more;\nfn c() {}\n";
    assert_eq!(test_modules(code), [Span { name: "tests".into(), first: 2, last: 5 }]);
}
