//! How reasons that people read are put: names in quotes, numbers of things. Does not know what they
//! are the reasons of.

/// A name as it was given, whatever bytes it has.
pub fn quoted(name: &[u8]) -> String {
    format!("'{}'", String::from_utf8_lossy(name).escape_debug())
}

/// A number of things, in the singular if it is one.
pub fn counted(number: u64, thing: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let texts = [0, 1, 2].map(|number| counted(number, "queue"));
        assert_eq!(texts, ["0 queues", "1 queue", "2 queues"]);
    }

    #[test]
    fn what_cannot_be_printed_is_escaped() {
        assert_eq!(quoted(b"a\n"), "'a\\n'");
    }
}
