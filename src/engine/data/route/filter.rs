//! Filter bindings: conditions on headers, properties and fields of JSON bodies, in the language of
//! JMS message selectors. Does not know exchanges, only one set of bindings.
//!
//! ```text
//! bind     text ── filter/parse.rs ──► filter/program.rs, whose fields get slots of the exchange
//! message  headers, properties, body ── each read once, if any binding asks ──► values by slot
//!          every program in turn over the values: nothing is allocated, nothing looked up
//! ```
//!
//! The cost of a message is its headers, its body if a binding asks for fields of it, and the steps of
//! all bindings; each of these is bounded where it is bound.

mod json;
mod like;
mod parse;
mod program;
mod value;

use ringpost_wire::Envelope;
use ringpost_wire::ids::TenantId;
use ringpost_wire::limits::{FILTER_BODY_BYTES_MAX, FILTER_BYTES_MAX};
use ringpost_wire::properties::Properties;
use ringpost_wire::table as fields;

use self::json::Paths;
use self::parse::{Field, Parsed, System};
use self::program::{Program, STACK_MAX, Step};
use self::value::Fact;
use super::{Binding, Facts, Hop, memo};
use crate::data::table::Table;
use crate::options::Options;

/// The bindings of one filter exchange.
pub(super) struct FilterBindings {
    /// In order of their keys.
    filters: Vec<Filter>,
    /// Slots of headers by their names, of what else a message says, and of fields of its body.
    headers: Table<Box<[u8]>, u32>,
    system: Vec<(System, u32)>,
    paths: Paths,
    /// By slot: the fields of bindings that have it.
    uses: Vec<u32>,
    free: Vec<u32>,
}

struct Filter {
    order: (bool, u32),
    key: Box<[u8]>,
    arguments: Box<[u8]>,
    hop: Hop,
    program: Program,
    fields: Vec<Field>,
}

/// Memory for the message that is filtered; one for all exchanges.
#[derive(Default)]
pub(super) struct Workspace {
    /// By slot; empty between messages.
    values: Vec<Fact<'static>>,
    /// Texts of the body that had escapes.
    scratch: Vec<u8>,
}

impl FilterBindings {
    pub fn new() -> Self {
        Self {
            filters: Vec::new(),
            headers: Table::new(),
            system: Vec::new(),
            paths: Paths::new(),
            uses: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Calls `found` with every queue and exchange that a binding leads to, each once, in order.
    //= P-75
    pub fn matches(
        &mut self,
        address: &memo::Address<'_>,
        facts: &Facts<'_>,
        work: &mut Workspace,
        mut found: impl FnMut(Hop),
    ) {
        let mut values: Vec<Fact<'_>> = std::mem::take(&mut work.values);
        values.resize(self.uses.len(), Fact::Missing);
        self.read_headers(facts, &mut values);
        self.read_system(address, facts, &mut values);
        if !self.paths.is_empty() {
            self.paths
                .read(facts.payload, &mut work.scratch, &mut values);
        }
        for value in &mut values {
            match *value {
                Fact::Missing => *value = Fact::Null,
                Fact::Unescaped(from, to) => {
                    *value = Fact::Text(&work.scratch[from as usize..to as usize]);
                }
                _ => {}
            }
        }
        let mut stack = [Fact::Null; STACK_MAX];
        let mut last = None;
        for filter in &self.filters {
            if last != Some(filter.order) && filter.program.holds(&values, &mut stack) {
                found(filter.hop);
                last = Some(filter.order);
            }
        }
        values.clear();
        // An empty vector collected in place: the memory stays, the borrows end.
        work.values = values.into_iter().map(|_| Fact::Null).collect();
    }

    fn read_headers<'m>(&self, facts: &Facts<'m>, values: &mut [Fact<'m>]) {
        if self.headers.is_empty() {
            return;
        }
        let table = fields::Table::parse(facts.headers).unwrap_or_default();
        for (name, value) in table.entries() {
            if let Some(slot) = self.headers.get(name) {
                // Of several headers with one name the first counts.
                let fact = &mut values[*slot as usize];
                if *fact == Fact::Missing {
                    *fact = Fact::of_header(value);
                }
            }
        }
    }

    fn read_system<'m>(
        &self,
        address: &memo::Address<'m>,
        facts: &Facts<'m>,
        values: &mut [Fact<'m>],
    ) {
        let mut properties = None;
        for (system, slot) in &self.system {
            let some = |number: u64| match number {
                0 => Fact::Null,
                _ => Fact::of_number(number),
            };
            values[*slot as usize] = match system {
                System::Exchange => Fact::Text(address.exchange),
                System::RoutingKey => Fact::Text(address.key),
                System::Priority => Fact::Int(i64::from(facts.priority)),
                System::TimestampUs => some(facts.timestamp_us),
                System::TtlMs => some(u64::from(facts.ttl_ms)),
                System::BodyBytes => Fact::of_number(facts.body_bytes),
                System::Property(property) => properties
                    .get_or_insert_with(|| Properties::parse(facts.properties).unwrap_or_default())
                    .get(*property)
                    .map_or(Fact::Null, Fact::of_property),
            };
        }
    }

    pub fn bind(&mut self, hop: Hop, binding: &Binding<'_>, work: &mut Workspace) {
        let parsed = parsed(binding.arguments).expect("the binding was checked");
        self.add(hop, (binding.key, binding.arguments), parsed, work);
    }

    fn add(
        &mut self,
        hop: Hop,
        (key, arguments): (&[u8], &[u8]),
        parsed: Parsed,
        work: &mut Workspace,
    ) {
        let Parsed {
            mut program,
            fields,
        } = parsed;
        let slots: Vec<u32> = fields.iter().map(|field| self.take(field)).collect();
        for step in &mut program.steps {
            if let Step::Load(field) = step {
                *field = slots[*field as usize];
            }
        }
        let filter = Filter {
            order: hop.order(),
            key: key.into(),
            arguments: arguments.into(),
            hop,
            program,
            fields,
        };
        let at = self.place(filter.order, (key, arguments));
        let at = at.expect_err("the binding is new");
        self.filters.insert(at, filter);
        work.values.reserve(self.uses.len());
        if !self.paths.is_empty() {
            work.scratch.clear();
            work.scratch.reserve(FILTER_BODY_BYTES_MAX);
        }
    }

    pub fn unbind(&mut self, hop: Hop, binding: &Binding<'_>) {
        let at = self.place(hop.order(), (binding.key, binding.arguments));
        let filter = self.filters.remove(at.expect("the binding exists"));
        for field in &filter.fields {
            self.give_back(field);
        }
    }

    fn place(&self, order: (bool, u32), (key, arguments): (&[u8], &[u8])) -> Result<usize, usize> {
        let key = (order, key, arguments);
        self.filters
            .binary_search_by(|filter| (filter.order, &*filter.key, &*filter.arguments).cmp(&key))
    }

    /// The slot of a field, used once more.
    fn take(&mut self, field: &Field) -> u32 {
        let (uses, free) = (&mut self.uses, &mut self.free);
        let mut fresh = || {
            free.pop().unwrap_or_else(|| {
                uses.push(0);
                u32::try_from(uses.len() - 1).expect("bindings are limited")
            })
        };
        let slot = match field {
            Field::Header(name) => *self.headers.get_or_insert_with(name.clone(), fresh),
            Field::System(system) => match self.system.iter().find(|(known, _)| known == system) {
                Some((_, slot)) => *slot,
                None => {
                    let slot = fresh();
                    self.system.push((*system, slot));
                    slot
                }
            },
            Field::Body(path) => self.paths.take(path, fresh),
        };
        self.uses[slot as usize] += 1;
        slot
    }

    fn give_back(&mut self, field: &Field) {
        let slot = match field {
            Field::Header(name) => *self.headers.get(name).expect("it is used"),
            Field::System(system) => {
                let known = self.system.iter().find(|(known, _)| known == system);
                known.expect("it is used").1
            }
            Field::Body(path) => self.paths.give_back(path),
        };
        let uses = &mut self.uses[slot as usize];
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        match field {
            Field::Header(name) => {
                self.headers.remove(name);
            }
            Field::System(system) => self.system.retain(|(known, _)| known != system),
            Field::Body(_) => {}
        }
        self.free.push(slot);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.filters.len()
    }

    /// Slots in use.
    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.uses.len() - self.free.len()
    }
}

/// The filter among a binding's arguments.
//= P-75
fn parsed(arguments: &[u8]) -> Result<Parsed, String> {
    let mut options = Options::of(arguments)?;
    let text = options.text("x-filter", FILTER_BYTES_MAX)?;
    let with_body = options.flag("x-filter-body")?;
    options.done("a binding of kind filter")?;
    let text = text.ok_or("a binding to a filter exchange has its condition in x-filter")?;
    checked(text, with_body, "x-filter-body")
}

/// A condition that looks at bodies only if the argument of that name says so.
fn checked(text: &[u8], with_body: bool, argument: &str) -> Result<Parsed, String> {
    let parsed = parse::parse(text)?;
    let body = parsed.fields.iter().find_map(|field| match field {
        Field::Body(path) => Some(path.join(&b'.')),
        _ => None,
    });
    match body {
        Some(path) if !with_body => Err(format!(
            "body.{} is looked at only with {argument} true",
            String::from_utf8_lossy(&path).escape_debug()
        )),
        _ => Ok(parsed),
    }
}

/// A condition by itself: of who reads a stream.
pub struct Condition {
    only: FilterBindings,
    work: Workspace,
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Condition").finish_non_exhaustive()
    }
}

impl Condition {
    /// Checks the text of a condition; one that looks at bodies must say so beside.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn check(text: &[u8], with_body: bool) -> Result<(), String> {
        checked(text, with_body, "x-stream-filter-body").map(|_| ())
    }

    /// A condition of this text.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let mut condition = Self {
            only: FilterBindings::new(),
            work: Workspace::default(),
        };
        let parsed = parse::parse(text)?;
        let Self { only, work } = &mut condition;
        only.add(Hop::Exchange(0), (b"", b""), parsed, work);
        Ok(condition)
    }

    /// Whether a message is one of those. Of a large one the first piece is enough.
    pub fn holds(&mut self, message: &Envelope<'_>) -> bool {
        let address = memo::Address {
            tenant: TenantId(0),
            exchange: message.exchange(),
            key: message.routing_key(),
        };
        let mut holds = false;
        let facts = Facts::of(message, 0);
        self.only
            .matches(&address, &facts, &mut self.work, |_| holds = true);
        holds
    }
}

/// Whether `arguments` may be those of a binding to a filter exchange.
///
/// # Errors
/// What is wrong with them, for people.
pub fn check_binding_arguments(arguments: &[u8]) -> Result<(), String> {
    parsed(arguments).map(|_| ())
}

#[cfg(test)]
mod tests;
