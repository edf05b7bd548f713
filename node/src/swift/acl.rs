//! Access lists: of containers (comma-separated text) and of accounts (JSON).
//!
//! Invariant: what `clean` returns parses to the same list again.

use serde_json::Value;

/// Tidy a container's access list, or say what is wrong with it. `write` lists know no referrers.
pub(crate) fn clean(list: &str, write: bool) -> Result<String, String> {
    let mut cleaned: Vec<String> = Vec::new();
    for raw in list.split(',').map(str::trim).filter(|raw| !raw.is_empty()) {
        let Some((first, second)) = raw.split_once(':') else {
            cleaned.push(raw.to_owned());
            continue;
        };
        let (first, mut second) = (first.trim(), second.trim());
        if !first.starts_with('.') {
            cleaned.push(raw.to_owned());
            continue;
        }
        if !matches!(first, ".r" | ".ref" | ".referer" | ".referrer") {
            return Err(format!("Unknown designator '{first}' in ACL: '{raw}'"));
        }
        if write {
            return Err(format!("Referrers not allowed in write ACL: '{raw}'"));
        }
        let mut minus = "";
        if let Some(rest) = second.strip_prefix('-') {
            minus = "-";
            second = rest.trim();
        }
        // All of them, so that a cleaned list stays as it is when it is cleaned again.
        while second != "*"
            && let Some(rest) = second.strip_prefix('*')
        {
            second = rest.trim();
        }
        // A host never begins with a hyphen; one left here would be taken for another negation when the list is read.
        if second.is_empty() || second == "." || second.starts_with('-') {
            return Err(format!("No host/domain value after referrer designation in ACL: '{raw}'"));
        }
        cleaned.push(format!(".r:{minus}{second}"));
    }
    Ok(cleaned.join(","))
}

/// Whether a container's access list lets these groups in.
pub(crate) fn names_group(list: &str, groups: &[String]) -> bool {
    list.split(',').filter(|entry| !entry.starts_with(".r:")).any(|entry| {
        let entry = percent_encoding::percent_decode_str(entry).decode_utf8_lossy();
        groups.iter().any(|group| *group == entry)
    })
}

/// Whether a container's access list opens listings to those it lets in by referrer.
pub(crate) fn opens_listings(list: &str) -> bool {
    list.split(',').any(|entry| entry == ".rlistings")
}

/// Whether a container's access list lets everyone in who comes from `referrer`; later entries override earlier ones.
pub(crate) fn allows_referrer(list: &str, referrer: Option<&str>) -> bool {
    let host = referrer.and_then(host_of).unwrap_or_else(|| "unknown".to_owned());
    let mut allowed = false;
    for pattern in list.split(',').filter_map(|entry| entry.strip_prefix(".r:")) {
        let (pattern, allow) = match pattern.strip_prefix('-') {
            Some(rest) => (rest, false),
            None => (pattern, true),
        };
        let domain = pattern.starts_with('.') && host.ends_with(pattern);
        if pattern == host || domain || (allow && pattern == "*") {
            allowed = allow;
        }
    }
    allowed
}

/// Host of a URL in lower case, without user and port.
fn host_of(url: &str) -> Option<String> {
    let rest = url.split_once("//")?.1;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = authority.rsplit('@').next().unwrap_or("");
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    if host.is_empty() { None } else { Some(host.to_ascii_lowercase()) }
}

/// An account's access list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AccountAcl {
    pub(crate) admin: Vec<String>,
    pub(crate) read_write: Vec<String>,
    pub(crate) read_only: Vec<String>,
}

impl AccountAcl {
    /// Parse it, or say what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut acl = Self::default();
        if text.is_empty() {
            return Ok(acl);
        }
        let Ok(Value::Object(lists)) = serde_json::from_str(text) else {
            return Err(format!("Syntax error in input ('{text}')"));
        };
        for (key, value) in lists {
            let list = match key.as_str() {
                "admin" => &mut acl.admin,
                "read-write" => &mut acl.read_write,
                "read-only" => &mut acl.read_only,
                _ => return Err(format!("Key {} not recognized", Value::String(key))),
            };
            let Value::Array(members) = value else {
                return Err(format!("Value for key {} must be a list", Value::String(key)));
            };
            for member in members {
                let Value::String(member) = member else {
                    return Err(format!("Elements of {} list must be strings", Value::String(key)));
                };
                list.push(member);
            }
        }
        Ok(acl)
    }

    /// Whether it names nobody.
    pub(crate) fn is_empty(&self) -> bool {
        self.admin.is_empty() && self.read_write.is_empty() && self.read_only.is_empty()
    }

    /// Its one spelling: ASCII JSON without spaces, keys in order. Empty lists given by the client stay out.
    pub(crate) fn format(&self) -> String {
        let mut lists = serde_json::Map::new();
        for (key, list) in
            [("admin", &self.admin), ("read-only", &self.read_only), ("read-write", &self.read_write)]
        {
            if !list.is_empty() {
                lists.insert(key.to_owned(), list.clone().into());
            }
        }
        let mut ascii = String::new();
        for c in Value::Object(lists).to_string().chars() {
            if c.is_ascii() {
                ascii.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    ascii.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        ascii
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fuzzing found it: a second star was left, and the next cleaning took it away.
    #[test]
    fn a_host_with_many_stars_is_cleaned_once_and_for_all() {
        let clean = clean(".r:**.example", false).unwrap();
        assert_eq!(clean, ".r:.example");
        assert_eq!(super::clean(&clean, false), Ok(clean));
    }

    #[test]
    fn messy_lists_are_cleaned() {
        for (messy, tidy) in [
            ("bob, sue", "bob,sue"),
            ("bob,,,sue", "bob,sue"),
            (".referrer : *", ".r:*"),
            (".ref:*.example.com", ".r:.example.com"),
            (".r:*, .rlistings", ".r:*,.rlistings"),
            (".r: - *.example.com", ".r:-.example.com"),
            ("test:tester , a:b", "test:tester,a:b"),
            ("", ""),
        ] {
            assert_eq!(clean(messy, false).as_deref(), Ok(tidy));
            assert_eq!(clean(tidy, false).as_deref(), Ok(tidy));
        }
        assert!(clean(".r:", false).is_err());
        assert!(clean(".r:-", false).is_err());
        assert!(clean(".unknown:x", false).is_err());
        // Fuzzing found it: cleaned to `.r:-*x`, which was read as a negation and cleaned on to `.r:-x`.
        assert!(clean(".r:*-*x", false).is_err());
        assert!(clean(".r:*", true).is_err());
    }

    #[test]
    fn later_referrers_override_earlier_ones() {
        let list = ".r:*,.r:-.thief.com,.r:good.thief.com";
        assert!(allows_referrer(list, Some("http://a.example.com/x")));
        assert!(!allows_referrer(list, Some("http://www.thief.com:80/")));
        assert!(allows_referrer(list, Some("https://user@GOOD.thief.com/")));
        assert!(allows_referrer(".r:*", None));
        assert!(!allows_referrer(".r:.example.com", None));
        assert!(!allows_referrer("bob", Some("http://bob/")));
    }

    #[test]
    fn groups_match_whole_entries_only() {
        let groups = vec!["test".to_owned(), "test:tester".to_owned(), "a,b".to_owned()];
        assert!(names_group("x,test:tester", &groups));
        assert!(names_group("a%2Cb", &groups));
        assert!(!names_group("test:teste", &groups));
        assert!(!names_group(".r:test", &groups));
    }

    #[test]
    fn account_lists_are_checked_and_have_one_spelling() {
        let acl = AccountAcl::parse(r#"{"read-write": ["b"], "admin": ["ü"]}"#).unwrap();
        assert_eq!(acl.format(), r#"{"admin":["\u00fc"],"read-write":["b"]}"#);
        assert!(AccountAcl::parse("{}").unwrap().is_empty());
        for bad in ["yuck", "[]", r#"{"admin": "x"}"#, r#"{"admin": [1]}"#, r#"{"other": []}"#] {
            assert!(AccountAcl::parse(bad).is_err(), "{bad}");
        }
    }
}
