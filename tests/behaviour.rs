//! The broker over its own protocol, rule by rule, on one, two and four cores (more cores than CPUs on
//! a small machine). Each test speaks raw frames, so that it can break every rule, in a tenant of its
//! own of a broker that it shares with the others; tests that stop the broker have one for themselves.
//!
//! | file | what it covers |
//! |---|---|
//! | `handshake.rs` | P-7, P-8, P-11, P-12, P-68: hello, versions, tenants, heartbeats, silence, close |
//! | `malformed.rs` | P-2 to P-6, P-14 to P-16, P-19 to P-21, P-44, P-92: everything that ends a connection, and that nothing else is touched |
//! | `hostile.rs` | P-5, P-6: random sessions with random faults beside an honest client, a connection that opens all it can |
//! | `topology.rs` | P-9, P-10, P-60 to P-69: queues, exchanges, bindings, tenants, what each refuses |
//! | `routing.rs` | P-64 to P-66, P-70 to P-75: every kind of exchange, the default one, exchanges bound to exchanges, internal and alternate ones |
//! | `publish.rs` | P-30 to P-39: levels, confirms, refusals, credit, sequences, close |
//! | `block.rs` | P-114: full queues that hold back credit |
//! | `consume.rs` | P-40 to P-49: push, get, settle, redelivery, exclusive, no-ack, limits |
//! | `dispatch.rs` | P-50 to P-54: priorities, policies, the single active consumer, who holds too long |
//! | `lanes.rs` | P-87, P-88, P-89: streams of several lanes, through the client crate |
//! | `large.rs` | P-22, P-31, P-46: messages around every border up to the largest |
//! | `places.rs` | P-55, P-111 to P-113: browsing, cancelling, moving |
//! | `pressure.rs` | P-18, P-33: the least memory, many producers, wide fan-outs, readers that stop |
//! | `resident.rs` | the memory of a loaded broker |
//! | `crossing.rs` | P-10, P-13, P-15, P-48: attach, and producers and consumers of other cores' queues |
//! | `stalled.rs` | P-41: consumers that do not read |
//! | `restart.rs` | P-45, P-47: what a restart keeps, what it forgets, other numbers of cores |
//! | `damage.rs` | bits that rot: what `verify` names, what the broker refuses, what `repair` gives up |
//! | `stages.rs` | the histograms of stages count every message once |
//! | `trace.rs` | a message that is followed, on its own core and another, and what is not followed |
//! | `transactions.rs` | P-94 to P-100: channels, numbers and limits of transactions, and the client's |
//! | `twin.rs` | the engines decide by nothing but their inputs: recorded and repeated |
//! | `client.rs` | the same broker through the client crate |
//!
//! `broker.rs` and `process.rs` start brokers and `wire.rs` is the client that speaks frames.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "behaviour/block.rs"]
mod block;
#[path = "behaviour/broker.rs"]
mod broker;
#[path = "behaviour/client.rs"]
mod client;
#[path = "behaviour/consume.rs"]
mod consume;
#[path = "behaviour/crossing.rs"]
mod crossing;
#[path = "behaviour/damage.rs"]
mod damage;
#[path = "behaviour/dispatch.rs"]
mod dispatch;
#[path = "behaviour/handshake.rs"]
mod handshake;
#[path = "behaviour/hostile.rs"]
mod hostile;
#[path = "behaviour/lanes.rs"]
mod lanes;
#[path = "behaviour/large.rs"]
mod large;
#[path = "behaviour/malformed.rs"]
mod malformed;
#[path = "behaviour/places.rs"]
mod places;
#[path = "behaviour/pressure.rs"]
mod pressure;
#[path = "behaviour/process.rs"]
mod process;
#[path = "behaviour/publish.rs"]
mod publish;
#[path = "behaviour/resident.rs"]
mod resident;
#[path = "behaviour/restart.rs"]
mod restart;
#[path = "behaviour/routing.rs"]
mod routing;
#[path = "behaviour/stages.rs"]
mod stages;
#[path = "behaviour/stalled.rs"]
mod stalled;
#[path = "behaviour/topology.rs"]
mod topology;
#[path = "behaviour/trace.rs"]
mod trace;
#[path = "behaviour/transactions.rs"]
mod transactions;
#[path = "behaviour/twin.rs"]
mod twin;
#[path = "behaviour/wire.rs"]
mod wire;

/// What a test is given: a broker, and a tenant that is its own.
pub struct Setup {
    /// Shared with other tests.
    pub broker: std::sync::Arc<broker::Broker>,
    /// Where nobody else works.
    pub tenant: String,
}

impl Setup {
    /// A tenant of the broker that all tests with so many cores share.
    pub fn shared(cores: u16, tenant: &str) -> Self {
        Self {
            broker: broker::Broker::shared(cores),
            tenant: tenant.to_owned(),
        }
    }

    /// As [`Setup::shared`], of a broker with the least memory.
    pub fn least(cores: u16, tenant: &str) -> Self {
        Self {
            broker: broker::Broker::shared_least(cores),
            tenant: tenant.to_owned(),
        }
    }

    /// The same tenant of a broker with as many cores that no other test uses.
    pub fn alone(&self) -> Self {
        Self {
            broker: std::sync::Arc::new(broker::Broker::start(self.cores(), &[])),
            tenant: self.tenant.clone(),
        }
    }

    /// An open connection of the test's tenant.
    fn wire(&self) -> wire::Wire {
        wire::Wire::tenant(&self.broker, &self.tenant)
    }

    /// Cores of the broker.
    pub fn cores(&self) -> u16 {
        self.broker.cores()
    }
}

/// Makes each of these functions a test on 1, 2 and 4 cores, with ordinary or the `least` memory.
macro_rules! on_cores {
    ($($name:ident)*) => {
        $crate::on_cores!(@all shared $($name)*);
    };
    (least: $($name:ident)*) => {
        $crate::on_cores!(@all least $($name)*);
    };
    (@all $memory:ident $($name:ident)*) => {
        $crate::on_cores!(@one $memory on_1_core 1 $($name)*);
        $crate::on_cores!(@one $memory on_2_cores 2 $($name)*);
        $crate::on_cores!(@one $memory on_4_cores 4 $($name)*);
    };
    (@one $memory:ident $module:ident $cores:literal $($name:ident)*) => {
        mod $module {
            $(#[test]
            fn $name() {
                let tenant = concat!(module_path!(), "::", stringify!($name));
                super::$name(&$crate::Setup::$memory($cores, tenant));
            })*
        }
    };
}
pub(crate) use on_cores;
