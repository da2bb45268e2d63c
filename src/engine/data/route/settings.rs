//! The settings of an exchange, and what a binding must be like, as their arguments say them.
//! Does not know what is bound.

use ringpost_wire::control::{ExchangeKind, is_name};
use ringpost_wire::limits::NAME_BYTES_MAX;
use ringpost_wire::properties::{Properties, Property, PropertyValue};
use ringpost_wire::table;

use super::{Decides, Facts, filter, headers, shares};
use crate::options::Options;

/// Longest name of a header in bytes: what a field table can hold.
const HEADER_BYTES_MAX: usize = 255;

/// The settings of an exchange.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What a `consistent-hash` exchange hashes.
    pub(crate) hash: HashOf,
    /// Clients may not publish to it.
    pub(crate) is_internal: bool,
    /// Who takes what nothing matches: the name of an exchange, which need not exist.
    pub(crate) alternate: Option<Box<[u8]>>,
    /// It goes when its last binding does.
    pub(crate) is_auto_delete: bool,
}

/// What of a message is hashed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum HashOf {
    RoutingKey,
    Header(Box<[u8]>),
    Property(Property),
}

impl Settings {
    /// The settings among an exchange's arguments.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    //= P-63
    pub fn of(kind: ExchangeKind, arguments: &[u8]) -> Result<Self, String> {
        let mut options = Options::of(arguments)?;
        let settings = Self::under(kind, &mut options)?;
        options.done(&format!("an exchange of kind {}", kind.word()))?;
        Ok(settings)
    }

    /// The settings among an exchange's arguments and those of its policies.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn under(kind: ExchangeKind, options: &mut Options<'_>) -> Result<Self, String> {
        //= P-73
        let is_internal = options.flag("x-internal")?;
        //= P-74
        let alternate = options.text("x-alternate-exchange", NAME_BYTES_MAX)?;
        if let Some(name) = alternate
            && !(name.is_empty() || name.starts_with(b"amq.") || is_name(name))
        {
            return Err(format!(
                "x-alternate-exchange '{}' can be the name of no exchange",
                String::from_utf8_lossy(name).escape_debug()
            ));
        }
        //= P-78
        let is_auto_delete = options.flag("x-auto-delete")?;
        let mut hash = HashOf::RoutingKey;
        if kind == ExchangeKind::ConsistentHash {
            //= P-70
            let header = options.text("x-hash-header", HEADER_BYTES_MAX)?;
            let words = Property::ALL.map(|property| (property.word(), property));
            let property = options.word("x-hash-property", &words)?;
            hash = match (header, property) {
                (None, None) => HashOf::RoutingKey,
                (Some(b""), _) => return Err("x-hash-header is empty".to_owned()),
                (Some(header), None) => HashOf::Header(header.into()),
                (None, Some(property)) => HashOf::Property(property),
                (Some(_), Some(_)) => {
                    return Err("x-hash-header and x-hash-property exclude each other".to_owned());
                }
            };
        }
        Ok(Self {
            hash,
            is_internal,
            alternate: alternate.map(Into::into),
            is_auto_delete,
        })
    }
}

impl HashOf {
    /// The hash of a message, and what it holds for.
    pub fn hash(&self, key: &[u8], facts: &Facts<'_>) -> (u64, Decides) {
        match self {
            Self::RoutingKey => (shares::hash_bytes(key), Decides::Address),
            Self::Header(name) => {
                let headers = table::Table::parse(facts.headers).unwrap_or_default();
                (shares::hash_value(headers.get(name)), Decides::Message)
            }
            Self::Property(property) => {
                let properties = Properties::parse(facts.properties).unwrap_or_default();
                let hash = match properties.get(*property) {
                    None => shares::hash_bytes(b""),
                    Some(PropertyValue::Text(text)) => shares::hash_bytes(text),
                    Some(PropertyValue::Number(number)) => shares::hash_number(number),
                };
                (hash, Decides::Message)
            }
        }
    }
}

/// Whether a binding with this key and these arguments may be one of an exchange of this kind.
///
/// # Errors
/// What is wrong, for people.
//= P-64
pub fn check_binding(kind: ExchangeKind, key: &[u8], arguments: &[u8]) -> Result<(), String> {
    match kind {
        ExchangeKind::Direct | ExchangeKind::Fanout | ExchangeKind::Topic => {
            headers::check_table(arguments)
        }
        ExchangeKind::Headers => headers::check_binding_arguments(arguments),
        ExchangeKind::Filter => filter::check_binding_arguments(arguments),
        //= P-70
        ExchangeKind::ConsistentHash | ExchangeKind::Random => {
            shares::weight_of(key)?;
            Options::of(arguments)?.done(&format!("a binding of kind {}", kind.word()))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ringpost_wire::table::{TableWriter, Value};

    pub(in crate::data::route) fn arguments(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = TableWriter::new(&mut bytes);
        for (name, value) in entries {
            writer.put(name.as_bytes(), *value);
        }
        writer.finish().expect("a small table");
        bytes
    }

    //= P-70
    #[test]
    fn what_is_hashed_is_a_setting_of_one_kind_only() {
        let of = |kind, entries: &[(&str, Value<'_>)]| Settings::of(kind, &arguments(entries));
        let header = ("x-hash-header", Value::Text(b"customer"));
        let property = ("x-hash-property", Value::Text(b"message_id"));
        let hash = ExchangeKind::ConsistentHash;
        let hashed = |entries: &[(&str, Value<'_>)]| of(hash, entries).map(|all| all.hash);
        assert_eq!(hashed(&[]), Ok(HashOf::RoutingKey));
        assert_eq!(
            hashed(&[header]),
            Ok(HashOf::Header(b"customer"[..].into()))
        );
        assert_eq!(
            hashed(&[property, ("owner", Value::Void)]),
            Ok(HashOf::Property(Property::MessageId))
        );
        for (entries, reason) in [
            (&[header, property][..], "exclude each other"),
            (&[("x-hash-header", Value::Text(b""))], "empty"),
            (&[("x-hash-header", Value::I8(1))], "not text"),
            (&[("x-hash-property", Value::Text(b"size"))], "not one of"),
            (&[("x-hash", Value::Text(b"a"))], "no setting"),
        ] {
            let said = hashed(entries).expect_err(reason);
            assert!(said.contains(reason), "{said}");
        }
        for kind in ExchangeKind::ALL {
            assert_eq!(of(kind, &[header]).is_ok(), kind == hash);
            assert!(of(kind, &[("owner", Value::Text(b"shop"))]).is_ok());
        }
    }

    #[test]
    fn weights_are_checked_when_they_are_bound() {
        for kind in ExchangeKind::ALL {
            let weighted = matches!(kind, ExchangeKind::ConsistentHash | ExchangeKind::Random);
            let own = match kind {
                ExchangeKind::Filter => arguments(&[("x-filter", Value::Text(b"a = 1"))]),
                _ => Vec::new(),
            };
            assert!(check_binding(kind, b"1000", &own).is_ok());
            assert_eq!(check_binding(kind, b"1001", &own).is_err(), weighted);
            assert_eq!(check_binding(kind, b"a.b", &own).is_err(), weighted);
            let unknown = arguments(&[("x-weight", Value::I8(1))]);
            let refuses = weighted || kind == ExchangeKind::Filter;
            assert_eq!(check_binding(kind, b"1", &unknown).is_err(), refuses);
            assert!(check_binding(kind, b"1", b"\xff").is_err());
        }
    }
}
