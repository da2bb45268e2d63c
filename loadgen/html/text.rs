//! Text inside pages: what others wrote stays text. Does not know pages.

/// Text for between tags and inside quoted attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// JSON for inside a script element, which nothing in it may end.
#[must_use]
pub(super) fn json_for_script(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// Writing to a String cannot fail; this says so once.
macro_rules! put {
    ($out:expr, $($words:tt)*) => {
        std::fmt::Write::write_fmt($out, format_args!($($words)*)).expect("it is memory")
    };
}
pub(super) use put;

/// A text that begins a sentence; not a flag.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if !text.starts_with("--") => {
            first.to_uppercase().collect::<String>() + letters.as_str()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out() {
        assert_eq!(
            escape("<a href=\"x\">&"),
            "&lt;a href=&quot;x&quot;&gt;&amp;"
        );
        let json = json_for_script("{\"a\":\"</script>\"}");
        assert!(!json.contains("</"));
        let read: serde_json::Value = serde_json::from_str(&json).expect("still JSON");
        assert_eq!(read["a"], "</script>");
    }
}
