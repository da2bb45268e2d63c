//! What clients know of messages that died: what they rejected, what the broker owes for that, and what
//! was found in the queues for the dead. Does not know queues' settings.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_check::{MessageId, QueueNo};

/// A queue: its tenant and its name.
type Name = (usize, String);

/// The deaths of a world.
#[derive(Default, Debug)]
pub struct Graves {
    rejected: BTreeSet<(Name, MessageId)>,
    /// Rejects that were confirmed, with the number of their queue.
    owed: BTreeMap<(Name, MessageId), QueueNo>,
    /// Places in the queue for the dead.
    found: BTreeMap<(Name, MessageId), u64>,
}

impl Graves {
    /// A client has rejected a message.
    pub fn rejected(&mut self, tenant: usize, name: &str, message: MessageId) {
        self.rejected.insert(((tenant, name.to_owned()), message));
    }

    /// The broker has confirmed that.
    pub fn owed(&mut self, name: Name, number: QueueNo, message: MessageId) {
        self.owed.insert((name, message), number);
    }

    /// A dead letter is in the queue for the dead, at this place.
    ///
    /// # Errors
    /// Nobody rejected it though that is what it says, or it is there twice.
    pub fn found(
        &mut self,
        name: Name,
        reason: &str,
        message: MessageId,
        place: u64,
    ) -> Result<(), String> {
        let key = (name, message);
        if reason == "rejected" && !self.rejected.contains(&key) {
            return Err(format!("{key:?} was rejected by nobody and is dead"));
        }
        let before = self.found.insert(key.clone(), place);
        match before {
            Some(before) if before != place => Err(format!(
                "{key:?} died once and is dead at places {before} and {place}"
            )),
            _ => Ok(()),
        }
    }

    /// Whether everything that was owed was found, but for queues that are gone.
    ///
    /// # Errors
    /// What was not.
    pub fn judge(&self, is_there: impl Fn(&Name, QueueNo) -> bool) -> Result<(), String> {
        let missing = self.owed.iter().find(|(key, number)| {
            let (name, _) = key;
            !self.found.contains_key(*key) && is_there(name, **number)
        });
        match missing {
            None => Ok(()),
            Some((key, _)) => Err(format!(
                "the reject of {key:?} was confirmed and its dead letter is nowhere"
            )),
        }
    }
}
