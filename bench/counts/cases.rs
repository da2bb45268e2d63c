//! The cases: each a fixed amount of work, the same in every process, beside a set-up that is not
//! measured. Does not know how they are measured.

mod codec;
mod core;
mod journal;
mod queue;
mod rings;
mod route;

/// A round, as callgrind finds it.
pub const ROUND: &str = "*measure*counted*";
/// A step of an engine that stands in `machine`: what clients and devices do is not in it.
const STEP: &str = "*machine*Place*step*";

/// A case that is set up.
pub trait Work {
    /// Makes ready for a round, unmeasured.
    fn prepare(&mut self) {}
    /// Does the work, and says how many units it was: messages, mostly.
    fn round(&mut self) -> u64;
}

/// Work that needs nothing made ready.
impl<F: FnMut() -> u64> Work for F {
    fn round(&mut self) -> u64 {
        self()
    }
}

/// A case.
pub struct Case {
    /// Part, what it does, and with what.
    pub name: &'static str,
    /// The function whose instructions count, with all that it calls.
    pub counted: &'static str,
    /// Sets it up.
    pub make: Box<dyn Fn() -> Box<dyn Work> + Send + Sync>,
}

impl Case {
    fn new<W: Work + 'static>(
        name: &'static str,
        make: impl Fn() -> W + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            counted: ROUND,
            make: Box::new(move || Box::new(make())),
        }
    }

    /// A case of which only the engine's steps are counted. Its time is that of all.
    fn of_engine<W: Work + 'static>(
        name: &'static str,
        make: impl Fn() -> W + Send + Sync + 'static,
    ) -> Self {
        Self {
            counted: STEP,
            ..Self::new(name, make)
        }
    }
}

/// Every case.
pub fn all() -> Vec<Case> {
    let mut all = codec::cases();
    all.extend(route::cases());
    all.extend(journal::cases());
    all.extend(rings::cases());
    all.extend(queue::cases());
    all.extend(core::cases());
    all
}
