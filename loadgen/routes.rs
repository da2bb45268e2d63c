//! Which queues a message reaches: queues stand in groups of `fan_out`, a message goes to all of a
//! group, by way of an exchange of one kind. Declares and deletes what that needs. Does not publish.

use ringpost_wire::control::ExchangeKind;
use ringpost_wire::table::{TableWriter, Value};

use crate::link::Link;
use crate::message::Way;
use crate::peer;
use crate::plan::Plan;
use crate::{Error, Result};

/// How messages are routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Exchange {
    /// By the default exchange, straight to a queue.
    #[default]
    Default,
    /// By a key that is equal.
    Direct,
    /// By an exchange for each group.
    Fanout,
    /// By a pattern with both wildcards.
    Topic,
    /// By a header.
    Headers,
}

impl Exchange {
    /// The protocol's kind; none is the default exchange.
    #[must_use]
    pub const fn kind(self) -> Option<ExchangeKind> {
        match self {
            Exchange::Default => None,
            Exchange::Direct => Some(ExchangeKind::Direct),
            Exchange::Fanout => Some(ExchangeKind::Fanout),
            Exchange::Topic => Some(ExchangeKind::Topic),
            Exchange::Headers => Some(ExchangeKind::Headers),
        }
    }

    /// The word on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self.kind() {
            None => "default",
            Some(kind) => kind.word(),
        }
    }
}

/// Where the messages of a group go, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The exchange; empty is the default one.
    pub exchange: String,
    /// The routing key.
    pub key: String,
    /// A field table, or empty.
    pub headers: Vec<u8>,
}

impl Route {
    /// The same, borrowed.
    #[must_use]
    pub fn way(&self) -> Way<'_> {
        Way {
            exchange: self.exchange.as_bytes(),
            key: self.key.as_bytes(),
            headers: &self.headers,
        }
    }
}

/// The route of a group.
#[must_use]
pub fn route(plan: &Plan, group: u32) -> Route {
    let exchange = exchange_name(plan, group);
    match plan.exchange {
        Exchange::Default => Route {
            exchange,
            key: plan.queue_name(group),
            headers: Vec::new(),
        },
        Exchange::Direct | Exchange::Fanout => Route {
            exchange,
            key: format!("g{group}"),
            headers: Vec::new(),
        },
        Exchange::Topic => Route {
            exchange,
            key: format!("load.g{group}.message.some"),
            headers: Vec::new(),
        },
        Exchange::Headers => Route {
            exchange,
            key: String::new(),
            headers: table(&[("group", Value::U32(group))]),
        },
    }
}

/// The name of the exchange of a group.
fn exchange_name(plan: &Plan, group: u32) -> String {
    match plan.exchange {
        Exchange::Default => String::new(),
        Exchange::Fanout => format!("{}exchange-{group}", plan.queue_prefix),
        Exchange::Direct | Exchange::Topic | Exchange::Headers => {
            format!("{}exchange-{}", plan.queue_prefix, group % plan.exchanges)
        }
    }
}

/// The exchanges of a plan.
fn exchange_names(plan: &Plan) -> Vec<String> {
    let mut names: Vec<_> = (0..plan.groups())
        .map(|group| exchange_name(plan, group))
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn table(entries: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    for (key, value) in entries {
        writer.put(key.as_bytes(), *value);
    }
    writer.finish().expect("two short entries are a table");
    bytes
}

/// Declares the plan's queues, exchanges and bindings.
///
/// # Errors
/// If the broker refuses.
pub fn declare(plan: &Plan) -> Result<()> {
    plan.check()?;
    if plan.via.is_peer() {
        return peer::declare(plan);
    }
    let mut link = Link::connect(plan.address)?;
    for queue in 0..plan.queues {
        link.declare(&plan.queue_name(queue), plan.durability)?;
    }
    let Some(kind) = plan.exchange.kind() else {
        return Ok(());
    };
    for name in exchange_names(plan) {
        link.declare_exchange(&name, kind, plan.durability)?;
    }
    for queue in 0..plan.queues {
        let group = plan.group_of(queue);
        let exchange = exchange_name(plan, group);
        let (key, arguments) = match plan.exchange {
            Exchange::Topic => (format!("*.g{group}.#"), Vec::new()),
            Exchange::Headers => {
                let all = Value::Text(b"all");
                let entries = [("x-match", all), ("group", Value::U32(group))];
                (String::new(), table(&entries))
            }
            _ => (route(plan, group).key, Vec::new()),
        };
        link.bind(&exchange, &plan.queue_name(queue), &key, &arguments)?;
    }
    Ok(())
}

/// Deletes what [`declare`] made.
///
/// # Errors
/// If the broker refuses.
pub fn delete(plan: &Plan) -> Result<()> {
    if plan.via.is_peer() {
        return peer::delete(plan);
    }
    let mut link = Link::connect(plan.address)?;
    for queue in 0..plan.queues {
        link.delete(&plan.queue_name(queue))?;
    }
    for name in exchange_names(plan) {
        link.delete_exchange(&name)?;
    }
    Ok(())
}

/// Checks what cannot be routed.
///
/// # Errors
/// [`Error::Plan`] with what is wrong.
pub fn check(plan: &Plan) -> Result<()> {
    let wrong = |text: String| Err(Error::Plan(text));
    if plan.fan_out == 0 || plan.exchanges == 0 {
        return wrong("a fan-out and a number of exchanges start at 1".into());
    }
    if !plan.queues.is_multiple_of(plan.fan_out) {
        return wrong(format!(
            "{} queues cannot stand in groups of {}: make the queues a multiple of the fan-out",
            plan.queues, plan.fan_out
        ));
    }
    if plan.exchange == Exchange::Default && plan.fan_out > 1 {
        return wrong(
            "the default exchange reaches one queue: name a kind with --exchange for a fan-out"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_routes_of_their_own() {
        let mut plan = Plan::new(([127, 0, 0, 1], 1).into());
        plan.queues = 6;
        assert_eq!(route(&plan, 4).key, "load-4");
        plan.fan_out = 2;
        assert!(check(&plan).is_err());
        for exchange in [
            Exchange::Direct,
            Exchange::Fanout,
            Exchange::Topic,
            Exchange::Headers,
        ] {
            plan.exchange = exchange;
            plan.exchanges = 2;
            check(&plan).expect("it can be routed");
            let routes: Vec<_> = (0..plan.groups())
                .map(|group| route(&plan, group))
                .collect();
            for (at, route) in routes.iter().enumerate() {
                assert!(!routes[..at].contains(route), "{exchange:?}");
            }
            let count = exchange_names(&plan).len();
            assert_eq!(count, if exchange == Exchange::Fanout { 3 } else { 2 });
        }
        plan.queues = 7;
        assert!(check(&plan).is_err());
    }
}
