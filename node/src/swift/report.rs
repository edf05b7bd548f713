//! Reports of requests that do many things at once: bulk and manifest uploads and deletes.

use super::listing::{Format, json_string, xml};

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fact {
    Text(String),
    Number(u64),
}

/// A report in one format: facts in the order given (JSON) or by name (text, XML), then what failed and why.
pub(crate) fn render(
    format: Format,
    facts: &[(&str, Fact)],
    failed: &[(String, String)],
    root: &str,
) -> String {
    let mut sorted: Vec<&(&str, Fact)> = facts.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    let mut out = String::new();
    match format {
        Format::Json => {
            out.push('{');
            for (name, fact) in facts {
                json_string(&mut out, name);
                out.push_str(": ");
                match fact {
                    Fact::Text(text) => json_string(&mut out, text),
                    Fact::Number(number) => out.push_str(&number.to_string()),
                }
                out.push_str(", ");
            }
            out.push_str("\"Errors\": [");
            for (i, (name, why)) in failed.iter().enumerate() {
                out.push_str(if i == 0 { "[" } else { ", [" });
                json_string(&mut out, name);
                out.push_str(", ");
                json_string(&mut out, why);
                out.push(']');
            }
            out.push_str("]}");
        }
        Format::Xml | Format::TextXml => {
            out.push_str(&format!("<{root}>\n"));
            for (name, fact) in sorted {
                let tag = name.replace(' ', "_").to_ascii_lowercase();
                out.push_str(&format!("<{tag}>"));
                push_fact(&mut out, fact, xml);
                out.push_str(&format!("</{tag}>\n"));
            }
            out.push_str("<errors>\n");
            for (name, why) in failed {
                out.push_str("<object><name>");
                xml(&mut out, name);
                out.push_str("</name><status>");
                xml(&mut out, why);
                out.push_str("</status></object>\n");
            }
            out.push_str(&format!("</errors>\n</{root}>\n"));
        }
        Format::Plain => {
            for (name, fact) in sorted {
                out.push_str(name);
                out.push_str(": ");
                push_fact(&mut out, fact, |out, text| out.push_str(text));
                out.push('\n');
            }
            out.push_str("Errors:\n");
            for (name, why) in failed {
                out.push_str(&format!("{name}, {why}\n"));
            }
        }
    }
    out
}

fn push_fact(out: &mut String, fact: &Fact, escape: impl Fn(&mut String, &str)) {
    match fact {
        Fact::Text(text) => escape(out, text),
        Fact::Number(number) => out.push_str(&number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_formats_say_the_same() {
        let facts =
            [("Response Status", Fact::Text("400 Bad Request".into())), ("Number Deleted", Fact::Number(2))];
        let failed = [("a&b/c".to_owned(), "404 Not Found".to_owned())];
        assert_eq!(
            render(Format::Plain, &facts, &failed, "delete"),
            "Number Deleted: 2\nResponse Status: 400 Bad Request\nErrors:\na&b/c, 404 Not Found\n"
        );
        assert_eq!(
            render(Format::Json, &facts, &failed, "delete"),
            "{\"Response Status\": \"400 Bad Request\", \"Number Deleted\": 2, \
             \"Errors\": [[\"a&b/c\", \"404 Not Found\"]]}"
        );
        assert_eq!(
            render(Format::Xml, &facts, &failed, "delete"),
            "<delete>\n<number_deleted>2</number_deleted>\n<response_status>400 Bad Request</response_status>\n\
             <errors>\n<object><name>a&amp;b/c</name><status>404 Not Found</status></object>\n</errors>\n</delete>\n"
        );
    }
}
