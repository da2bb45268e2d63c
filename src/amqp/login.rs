//! SASL logins that clients send with `connection.start-ok`. Does not know who may log in.

use ringpost_wire::Table;

/// A user's name and password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Login<'a> {
    /// The name.
    pub user: &'a [u8],
    /// The password.
    pub password: &'a [u8],
}

impl core::fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Passwords are in no log.
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// The mechanisms that [`read`] knows, as `connection.start` names them.
pub const MECHANISMS: &[u8] = b"PLAIN AMQPLAIN";

/// What a response of a mechanism says; `None` if it is no response, or the mechanism is not known.
#[must_use]
pub fn read<'a>(mechanism: &[u8], response: &'a [u8]) -> Option<Login<'a>> {
    match mechanism {
        // RFC 4616: an identity that is not used, the user, the password.
        b"PLAIN" => {
            let mut parts = response.splitn(3, |byte| *byte == 0);
            let (_identity, user, password) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Login { user, password })
        }
        // The contents of a field table, without its length.
        b"AMQPLAIN" => {
            let table = Table::parse(response).ok()?;
            let user = table.get(b"LOGIN")?.as_text()?;
            let password = table.get(b"PASSWORD")?.as_text()?;
            Some(Login { user, password })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_read() {
        let guest = Some(Login {
            user: b"guest",
            password: b"guest",
        });
        assert_eq!(read(b"PLAIN", b"\0guest\0guest"), guest);
        assert_eq!(read(b"PLAIN", b"who\0guest\0guest"), guest);
        let amqplain = b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x05guest";
        assert_eq!(read(b"AMQPLAIN", amqplain), guest);
        // A password may hold anything.
        let odd = read(b"PLAIN", b"\0me\0a\0b").expect("three parts");
        assert_eq!((odd.user, odd.password), (&b"me"[..], &b"a\0b"[..]));
        for at in 0..amqplain.len() {
            assert_eq!(read(b"AMQPLAIN", &amqplain[..at]), None, "cut at {at}");
        }
        assert_eq!(read(b"PLAIN", b"guest"), None);
        assert_eq!(read(b"PLAIN", b"\0guest"), None);
        assert_eq!(read(b"EXTERNAL", b""), None);
        assert_eq!(format!("{odd:?}"), "Login { .. }");
    }
}
