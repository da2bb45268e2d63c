//! What transactions have done, as their clients know it: each number is fed to a queue, and then moved
//! from it to two others, by transactions. Does not know frames.
//!
//! ```text
//! ti7 ──► ta7, tb7     the queues of client 7, wherever their names put them
//! ```

use std::collections::BTreeMap;

/// What is known of something that a transaction was to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It has not happened.
    No,
    /// Nobody has said.
    Maybe,
    /// It has happened.
    Yes,
}

#[derive(Clone, Copy, Debug)]
struct Number {
    fed: Fate,
    moved: Fate,
    /// The transaction that moved it, and its place there.
    by: (u64, usize),
}

/// A transaction that is being ended.
#[derive(Clone, Default, Debug)]
pub struct Ending {
    /// Numbers that it feeds.
    pub feeds: Vec<u32>,
    /// Numbers that it moves.
    pub moves: Vec<u32>,
    /// It is rolled back, or cannot be committed.
    pub is_vain: bool,
}

/// What one client knows.
#[derive(Clone, Default, Debug)]
pub struct Ledger {
    numbers: BTreeMap<u32, Number>,
    next: u32,
    transactions: u64,
}

/// Most numbers of a client.
const NUMBERS_MAX: u32 = 200;

impl Ledger {
    /// A number that was never fed, if there is one left.
    pub fn next_number(&mut self) -> Option<u32> {
        (self.next < NUMBERS_MAX).then(|| {
            self.next += 1;
            self.next
        })
    }

    /// A transaction is about to be ended.
    pub fn begin(&mut self, ending: &Ending) {
        self.transactions += 1;
        for number in &ending.feeds {
            let fed = Number {
                fed: Fate::Maybe,
                moved: Fate::No,
                by: (0, 0),
            };
            self.numbers.insert(*number, fed);
        }
        for (place, number) in ending.moves.iter().enumerate() {
            if let Some(known) = self.numbers.get_mut(number) {
                known.moved = Fate::Maybe;
                known.by = (self.transactions, place);
            }
        }
    }

    /// It was said how it has ended.
    pub fn end(&mut self, ending: &Ending, fate: Fate) {
        for number in &ending.feeds {
            if let Some(known) = self.numbers.get_mut(number) {
                known.fed = fate;
            }
        }
        for number in &ending.moves {
            if let Some(known) = self.numbers.get_mut(number) {
                known.moved = fate;
            }
        }
    }

    /// A number was delivered from where it is fed to.
    ///
    /// # Errors
    /// It cannot have been.
    pub fn delivered(&mut self, number: u32) -> Result<(), String> {
        let known = self.numbers.get_mut(&number);
        let known = known.ok_or_else(|| format!("number {number} was never fed"))?;
        if known.fed == Fate::No {
            return Err(format!(
                "number {number} comes, whose transaction has come to nothing"
            ));
        }
        if known.moved == Fate::Yes {
            return Err(format!("number {number} comes again, and was moved"));
        }
        // What happened had taken it away.
        known.fed = Fate::Yes;
        known.moved = Fate::No;
        Ok(())
    }

    /// Whether it may have happened, nobody having said so.
    #[must_use]
    pub fn has_doubts(&self) -> bool {
        let mut numbers = self.numbers.values();
        numbers.any(|known| known.fed == Fate::Maybe || known.moved == Fate::Maybe)
    }

    /// The numbers that the three queues hold, in order.
    ///
    /// # Errors
    /// They cannot hold these.
    pub fn judge(&self, [input, one, other]: [&[u32]; 3]) -> Result<(), String> {
        let count = |all: &[u32], number| all.iter().filter(|one| **one == number).count();
        for all in [input, one, other] {
            for number in all {
                if !self.numbers.contains_key(number) {
                    return Err(format!("number {number} was never fed"));
                }
            }
        }
        for (number, known) in &self.numbers {
            let (left, first, second) = (
                count(input, *number),
                count(one, *number),
                count(other, *number),
            );
            let is_possible = match (left, first, second) {
                (0, 0, 0) => known.fed != Fate::Yes,
                (1, 0, 0) => known.fed != Fate::No && known.moved != Fate::Yes,
                (0, 1, 1) => known.fed != Fate::No && known.moved != Fate::No,
                _ => false,
            };
            if !is_possible {
                return Err(format!(
                    "number {number}, fed {:?} and moved {:?}, is {left} times where it was fed, and \
                     {first} and {second} times where it was to be moved",
                    known.fed, known.moved
                ));
            }
        }
        for all in [one, other] {
            self.judge_places(all)?;
        }
        Ok(())
    }

    /// What one transaction moved lies behind each other, in its order.
    fn judge_places(&self, all: &[u32]) -> Result<(), String> {
        if let Some(first) = all.first()
            && self.numbers[first].by.1 != 0
        {
            return Err(format!(
                "number {first} lies before what was moved before it"
            ));
        }
        for (before, after) in all.iter().zip(all.iter().skip(1)) {
            let (before_by, after_by) = (self.numbers[before].by, self.numbers[after].by);
            let is_first = after_by.1 == 0;
            let follows = before_by.0 == after_by.0 && before_by.1 + 1 == after_by.1;
            if !is_first && !follows {
                return Err(format!(
                    "number {after} of transaction {} does not lie behind what it moved before",
                    after_by.0
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_knows_what_can_be() {
        let mut ledger = Ledger::default();
        let feed = Ending {
            feeds: vec![1, 2, 3],
            ..Ending::default()
        };
        ledger.begin(&feed);
        assert_eq!(ledger.judge([&[1, 2, 3], &[], &[]]), Ok(()));
        assert_eq!(ledger.judge([&[], &[], &[]]), Ok(()));
        ledger.end(&feed, Fate::Yes);
        assert!(ledger.judge([&[1, 3], &[], &[]]).is_err(), "2 is lost");
        assert!(ledger.judge([&[1, 2, 3, 4], &[], &[]]).is_err());
        assert_eq!(ledger.delivered(1), Ok(()));
        let moved = Ending {
            moves: vec![1, 2],
            ..Ending::default()
        };
        ledger.begin(&moved);
        assert_eq!(ledger.judge([&[3], &[1, 2], &[1, 2]]), Ok(()));
        assert_eq!(ledger.judge([&[1, 2, 3], &[], &[]]), Ok(()));
        assert!(ledger.judge([&[3], &[1, 2], &[1]]).is_err(), "half of it");
        assert!(ledger.judge([&[2, 3], &[1, 2], &[1, 2]]).is_err(), "twice");
        assert!(ledger.judge([&[3], &[2, 1], &[1, 2]]).is_err(), "order");
        ledger.end(&moved, Fate::Yes);
        assert!(ledger.judge([&[1, 2, 3], &[], &[]]).is_err(), "promised");
        assert!(ledger.delivered(1).is_err());
        assert!(ledger.delivered(9).is_err());
    }
}
