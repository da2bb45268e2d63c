//! Requests about the topology: who decides them, who applies them, who is told.
//! Does not decide what is allowed (`catalog/plan.rs`) and does not route.
//!
//! A change is planned by the meta core, durable in its journal before any core sees it, applied by
//! every core, and only then answered (rulings 3):
//!
//! ```text
//! client ── frame ──► its core ── Change ──► meta: plan, journal, synced, apply
//!                                             └── Apply ──► every other core ── Applied ─┐
//! client ◄── Done ─── its core ◄── Changed ── meta ◄─────────────────────────────────────┘
//! ```

mod lanes;

use std::collections::{BTreeMap, VecDeque};

use ringpost_wire::control::{
    self, Bind, Body, DELETE_IF_EMPTY, DELETE_IF_UNUSED, Delete, ExchangeDeclare, Named, PolicySet,
    QUEUE_DAMAGED, QUEUE_STREAM, QueueDeclare,
};
use ringpost_wire::ids::{CoreId, QueueId, TenantId};
use ringpost_wire::{Code, FrameHeader, FrameKind};

use self::lanes::{Asked as AskedLanes, Wish, fold_lanes};
use crate::Effects;
use crate::config::META;
use crate::control::catalog::change::TOGETHER_MAX;
use crate::control::catalog::plan::Refusal;
use crate::control::catalog::policy::{Policy, Subject};
use crate::control::catalog::{self, Catalog, Change, Plan, QueueUse, Request as Asked};
use crate::control::listing::{LISTS_MAX, Listings};
use crate::control::routing::policy_named;
use crate::control::words::counted;
use crate::data::coordinator::LaneOf;
use crate::data::flow::{Flow, QueueState, Waiter};
use crate::data::lifetime::{Leave, Mortal, Retirement};
use crate::data::places;
use crate::data::streams::{self, GroupAsker};
use crate::effect::Buffers;
use crate::ids::{ConnId, Owner};
use crate::mesh::{ChangeRequest, Changed, NOTE_BYTES, QueueFigures, Reply, Request};

/// Who is told how a change ended.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// A connection of this core.
    Here { conn: ConnId, header: FrameHeader },
    /// Another core, which asked with this number.
    There { core: CoreId, id: u32 },
    /// A queue of this core, which is to go by itself.
    Retiring(Leave),
    /// Nobody.
    Nobody,
}

/// What the meta core is to decide.
#[derive(Debug)]
enum Wanted {
    /// What a client asks for.
    Change(ChangeRequest),
    /// A queue is to go by itself.
    Retire(Leave),
    /// The queues of a connection are to go, which is gone.
    OwnerGone(Owner),
    /// These exchanges are to go: they lost their last binding in a change that was too large to have
    /// them in it.
    Orphans(Vec<Change>),
}

impl Wanted {
    /// Bytes of memory that it takes while it waits.
    fn cost(&self) -> u64 {
        NOTE_BYTES
            + match self {
                Self::Change(request) => request.body.len() as u64,
                Self::Retire(_) | Self::OwnerGone(_) => 0,
                Self::Orphans(orphans) => size_of_val(orphans.as_slice()) as u64,
            }
    }
}

/// What is known of a queue that expires since it was declared again.
#[derive(Clone, Copy, Default, Debug)]
struct Declared {
    /// Declarations that its owner has not heard of.
    untold: u32,
    /// As often it was to go before it heard of the last one: none of that holds.
    void: u32,
}

/// What is done about what is wanted.
enum Decision {
    /// As with any request.
    Plan(Plan),
    /// Nothing: it was declared again.
    Lives,
    /// Nothing at all.
    Nothing,
}

/// A planned change on its way to the disk, or an answer that may not overtake one.
#[derive(Debug)]
struct Staged {
    block: u64,
    change: Option<Change>,
    origin: Origin,
    /// Bytes that are counted for it.
    bytes: u64,
}

/// Work that waits for other cores.
#[derive(Debug)]
enum Pending {
    /// The meta core decides.
    Change {
        conn: ConnId,
        header: FrameHeader,
        bytes: u64,
    },
    /// Every core applies.
    Apply {
        origin: Origin,
        left: u32,
        messages: u64,
    },
    /// The owner says what a queue holds.
    Figures { conn: ConnId, header: FrameHeader },
    /// Other cores say what their queues on a page of a list hold.
    Page {
        conn: ConnId,
        left: u32,
        figures: Vec<QueueFigures>,
    },
    /// The owner says whether a queue may be deleted.
    Usage {
        conn: ConnId,
        header: FrameHeader,
        request: ChangeRequest,
    },
    /// Every core says whether it has connections of a tenant that is to be deleted.
    Tenant {
        conn: ConnId,
        header: FrameHeader,
        left: u32,
        connections: u32,
        request: ChangeRequest,
    },
    /// The owner purges.
    Purge { conn: ConnId, header: FrameHeader },
    /// The owners of a stream's lanes say or do something.
    Lanes(Box<AskedLanes>),
    /// The owner looks at messages of a queue.
    Places { conn: ConnId, header: FrameHeader },
    /// The owner looks at the groups of a stream.
    Groups { conn: ConnId, header: FrameHeader },
    /// The meta core decides about a queue of this core that is to go by itself.
    Retire(Leave),
    /// The owner hears that a queue was declared again; whoever did that is told after it.
    Keep(QueueId),
}

/// The topology as this core knows it, and the requests about it.
pub struct Topology {
    catalog: Catalog,
    /// On the meta core: the catalog with every staged change applied.
    planned: Catalog,
    /// On the meta core: requests to be planned when the turn ends.
    undecided: VecDeque<(Origin, Wanted)>,
    /// On the meta core: queues that expire and were declared again.
    declared: BTreeMap<QueueId, Declared>,
    staged: VecDeque<Staged>,
    pending: BTreeMap<u64, Pending>,
    /// On the meta core: who asked for what is there already, and the last change that every core
    /// must have applied before that is true everywhere.
    echoes: VecDeque<(u64, Origin)>,
    /// On any other core: requests to be decided, behind those that the meta core was asked.
    unasked: VecDeque<(Origin, Wanted)>,
    /// Bytes of those that it was asked and has not answered.
    asked_bytes: u64,
    lists: Listings,
    number: u64,
}

impl Topology {
    /// The recovered topology.
    #[must_use]
    pub fn new(catalog: Catalog) -> Self {
        Self {
            planned: catalog.clone(),
            catalog,
            undecided: VecDeque::new(),
            declared: BTreeMap::new(),
            staged: VecDeque::new(),
            pending: BTreeMap::new(),
            echoes: VecDeque::new(),
            unasked: VecDeque::new(),
            asked_bytes: 0,
            lists: Listings::default(),
            number: 0,
        }
    }

    /// Checks what must hold between two steps; O(n). For tests.
    ///
    /// # Panics
    /// If it does not.
    pub fn invariants(&self, flow: &Flow) {
        self.catalog.invariants();
        self.planned.invariants();
        let undecided = self.undecided.iter().map(|(_, wanted)| wanted.cost());
        let unasked = self.unasked.iter().map(|(_, wanted)| wanted.cost());
        let staged = self.staged.iter().map(|staged| staged.bytes);
        let waiting = undecided.chain(unasked).chain(staged).sum::<u64>();
        let echoes = self.echoes.len() as u64 * NOTE_BYTES;
        assert_eq!(waiting + echoes, flow.change_bytes);
    }

    /// The catalog for a checkpoint, which is cut behind everything appended: with the changes that
    /// are on their way to the disk, since replay will not see them again.
    #[must_use]
    pub fn appended(&self) -> &Catalog {
        if crate::mutant!(CheckpointForgetsChanges) {
            return &self.catalog;
        }
        &self.planned
    }

    /// The core runs: the meta core tells the others what the topology is.
    pub fn started(&mut self, flow: &mut Flow, effects: &mut Effects) {
        if flow.config.core != META {
            return;
        }
        let snapshot = self.catalog.encode();
        for core in 1..flow.config.cores {
            let request = Request::Snapshot {
                catalog: snapshot.clone(),
            };
            flow.ask(CoreId(core), request, Waiter::Nobody, effects);
        }
    }

    /// The tenant of this name; empty means the default one.
    #[must_use]
    pub fn tenant(&self, name: &[u8]) -> Option<TenantId> {
        let name = if name.is_empty() { b"default" } else { name };
        self.catalog.tenant_by_name(name).map(|tenant| tenant.id)
    }

    /// The name of a tenant.
    #[must_use]
    pub fn tenant_name(&self, tenant: TenantId) -> Option<&[u8]> {
        self.catalog.tenant(tenant).map(|tenant| &*tenant.name)
    }

    /// Whether a connection waits for an answer.
    #[must_use]
    pub fn is_asking(&self, conn: ConnId) -> bool {
        let asks = |origin: &Origin| matches!(origin, Origin::Here { conn: c, .. } if *c == conn);
        self.undecided.iter().any(|(origin, _)| asks(origin))
            || self.lists.has(conn)
            || self.staged.iter().any(|staged| asks(&staged.origin))
            || self.echoes.iter().any(|(_, origin)| asks(origin))
            || self.unasked.iter().any(|(origin, _)| asks(origin))
            || self.pending.values().any(|pending| match pending {
                Pending::Apply { origin, .. } => asks(origin),
                Pending::Change { conn: c, .. }
                | Pending::Figures { conn: c, .. }
                | Pending::Page { conn: c, .. }
                | Pending::Usage { conn: c, .. }
                | Pending::Tenant { conn: c, .. }
                | Pending::Purge { conn: c, .. }
                | Pending::Places { conn: c, .. }
                | Pending::Groups { conn: c, .. } => *c == conn,
                Pending::Lanes(asked) => asked.conn == conn,
                Pending::Retire(_) | Pending::Keep(_) => false,
            })
    }

    fn wait(&mut self, pending: Pending) -> Waiter {
        self.number += 1;
        self.pending.insert(self.number, pending);
        Waiter::Control(self.number)
    }

    /// A topology frame of a connection of this core. Requests of a connection that goes meanwhile
    /// go on; their answers find nobody.
    ///
    /// # Errors
    /// What ends the connection.
    pub fn frame(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        request: ChangeRequest,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        match header.kind {
            FrameKind::QueueList
            | FrameKind::ExchangeList
            | FrameKind::BindingList
            | FrameKind::TenantList
            | FrameKind::PolicyList
                if !request.body.is_empty() =>
            {
                return Err(Code::BodyMalformed);
            }
            //= P-67
            FrameKind::QueueList
            | FrameKind::ExchangeList
            | FrameKind::BindingList
            | FrameKind::TenantList
            | FrameKind::PolicyList => {
                self.list(flow, conn, header, request.tenant, effects);
            }
            //= P-80
            FrameKind::QueueDescribe => {
                let named = Named::decode(&request.body)?;
                if named.name.is_empty() {
                    self.list(flow, conn, header, request.tenant, effects);
                    return Ok(());
                }
                let Some(queue) = self.catalog.queue_by_name(request.tenant, named.name) else {
                    unknown_queue(flow, conn, header, named.name, effects);
                    return Ok(());
                };
                let options = self.catalog.options_of(queue);
                let answer = FrameHeader::bare(FrameKind::QueueDescription, 0, header.sequence);
                flow.say(conn, effects, |out| {
                    queue.description(&options).write(out, answer);
                });
            }
            FrameKind::QueueInspect => {
                let named = Named::decode(&request.body)?;
                match self
                    .catalog
                    .queue_by_name(request.tenant, named.name)
                    .map(|q| q.id)
                {
                    Some(queue) => self.inspect(flow, conn, header, queue, effects),
                    None => unknown_queue(flow, conn, header, named.name, effects),
                }
            }
            FrameKind::QueuePurge => {
                let named = Named::decode(&request.body)?;
                let Some(target) = flow.find_queue(request.tenant, named.name) else {
                    unknown_queue(flow, conn, header, named.name, effects);
                    return Ok(());
                };
                let queue = self.catalog.queue(target.queue);
                if let Some(Err((code, reason))) =
                    queue.map(|queue| queue.check_owner(Some(request.owner)))
                {
                    flow.fail(conn, header, code, &reason, effects);
                    return Ok(());
                }
                if self.catalog.lanes_of(target.queue) > 0 {
                    self.ask_lanes(flow, (conn, header), target.queue, Wish::Purge, effects);
                    return Ok(());
                }
                if target.core == flow.config.core {
                    let outcome = flow.purge(target.queue);
                    purged(flow, conn, header, outcome, effects);
                } else {
                    let waiter = self.wait(Pending::Purge { conn, header });
                    let request = Request::Purge {
                        queue: target.queue,
                    };
                    flow.ask(target.core, request, waiter, effects);
                }
            }
            FrameKind::QueueBrowse | FrameKind::QueueCancel | FrameKind::QueueMove => {
                self.ask_places(flow, conn, header, &request, effects)?;
            }
            FrameKind::GroupList | FrameKind::GroupReset | FrameKind::GroupDelete => {
                self.ask_groups(flow, conn, header, &request, effects)?;
            }
            FrameKind::QueueDelete => {
                let delete = Delete::decode(&request.body)?;
                if delete.flags & (DELETE_IF_UNUSED | DELETE_IF_EMPTY) == 0 {
                    self.change(flow, conn, header, request, effects);
                    return Ok(());
                }
                let Some(target) = flow.find_queue(request.tenant, delete.name) else {
                    unknown_queue(flow, conn, header, delete.name, effects);
                    return Ok(());
                };
                if self.catalog.lanes_of(target.queue) > 0 {
                    let wish = Wish::Delete(request);
                    self.ask_lanes(flow, (conn, header), target.queue, wish, effects);
                    return Ok(());
                }
                if target.core == flow.config.core {
                    let usage = usage(flow.figures_of(target.queue));
                    self.change(
                        flow,
                        conn,
                        header,
                        ChangeRequest { usage, ..request },
                        effects,
                    );
                } else {
                    let waiter = self.wait(Pending::Usage {
                        conn,
                        header,
                        request,
                    });
                    let queues = vec![target.queue];
                    flow.ask(target.core, Request::Inspect { queues }, waiter, effects);
                }
            }
            FrameKind::TenantDelete => self.delete_tenant(flow, conn, header, request, effects)?,
            _ => {
                // A malformed body is refused before it travels to another core.
                let asked = asked(&request)?;
                if let Asked::QueueDeclare(declare) = &asked
                    && declare.is_exclusive()
                    && let Some(session) = flow.sessions.get_mut(conn)
                {
                    session.owns_queues = true;
                }
                self.change(flow, conn, header, request, effects);
            }
        }
        Ok(())
    }

    /// A request about messages of a queue goes to who owns it.
    //= P-111, P-112, P-113
    fn ask_places(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        request: &ChangeRequest,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let (name, ask) = match places::place_ask(header.kind, &request.body)? {
            (name, Ok(ask)) => (name, ask),
            (_, Err(reason)) => {
                flow.fail(conn, header, Code::SettingInvalid, &reason, effects);
                return Ok(());
            }
        };
        let Some(target) = flow.find_queue(request.tenant, name) else {
            unknown_queue(flow, conn, header, name, effects);
            return Ok(());
        };
        let queue = self.catalog.queue(target.queue);
        if let Some(Err((code, reason))) = queue.map(|queue| queue.check_owner(Some(request.owner)))
        {
            flow.fail(conn, header, code, &reason, effects);
            return Ok(());
        }
        if target.core == flow.config.core {
            let asker = GroupAsker::Here { conn, header };
            flow.ask_places(target.queue, ask, asker, effects);
        } else {
            let waiter = self.wait(Pending::Places { conn, header });
            let queue = target.queue;
            flow.ask(target.core, Request::Places { queue, ask }, waiter, effects);
        }
        Ok(())
    }

    /// A request about the groups of a stream goes to who owns it.
    //= P-85, P-86
    fn ask_groups(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        request: &ChangeRequest,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let (name, ask) = match streams::group_ask(header.kind, &request.body)? {
            (name, Ok(ask)) => (name, ask),
            (_, Err(reason)) => {
                flow.fail(conn, header, Code::SettingInvalid, &reason, effects);
                return Ok(());
            }
        };
        let Some(target) = flow.find_queue(request.tenant, name) else {
            unknown_queue(flow, conn, header, name, effects);
            return Ok(());
        };
        //= P-89
        if let Some(reason) = flow.is_read_by_lane(target.queue) {
            flow.fail(conn, header, Code::SettingInvalid, &reason, effects);
            return Ok(());
        }
        if target.core == flow.config.core {
            let asker = GroupAsker::Here { conn, header };
            flow.ask_groups(target.queue, ask, asker, effects);
        } else {
            let waiter = self.wait(Pending::Groups { conn, header });
            let queue = target.queue;
            flow.ask(target.core, Request::Groups { queue, ask }, waiter, effects);
        }
        Ok(())
    }

    fn list(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        tenant: TenantId,
        effects: &mut Effects,
    ) {
        if !self.lists.add(conn, header, tenant) {
            let reason = format!("{LISTS_MAX} lists of this connection are not answered yet");
            flow.fail(conn, header, Code::LimitReached, &reason, effects);
        }
        // What is wrong behind it must not overtake its answer.
        self.go_on_listing(flow, effects);
    }

    /// Asks every core whether somebody of the tenant is connected, then decides as with any change.
    /// Who connects in between finds his tenant gone with the next request.
    //= P-68
    fn delete_tenant(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        request: ChangeRequest,
        effects: &mut Effects,
    ) -> Result<(), Code> {
        let named = Named::decode(&request.body)?;
        let Some(tenant) = self.tenant(named.name) else {
            self.change(flow, conn, header, request, effects);
            return Ok(());
        };
        let connections = flow.connections_of(tenant);
        let left = u32::from(flow.config.cores) - 1;
        if left == 0 {
            self.tenant_counted(flow, conn, header, connections, request, effects);
            return Ok(());
        }
        self.wait(Pending::Tenant {
            conn,
            header,
            left,
            connections,
            request,
        });
        let here = flow.config.core.0;
        for core in (0..flow.config.cores).filter(|core| *core != here) {
            let request = Request::Connections { tenant };
            flow.ask(CoreId(core), request, Waiter::Control(self.number), effects);
        }
        Ok(())
    }

    fn tenant_counted(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        connections: u32,
        request: ChangeRequest,
        effects: &mut Effects,
    ) {
        if connections == 0 {
            self.change(flow, conn, header, request, effects);
        } else {
            let connections = counted(u64::from(connections), "connection");
            let reason = format!("the tenant has {connections}; close them first");
            flow.fail(conn, header, Code::InUse, &reason, effects);
        }
    }

    /// Brings a change to the meta core.
    fn change(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        request: ChangeRequest,
        effects: &mut Effects,
    ) {
        //= P-10
        let origin = Origin::Here { conn, header };
        self.want(flow, origin, Wanted::Change(request), effects);
    }

    /// Brings what is wanted to the meta core, behind all that was wanted before.
    fn want(&mut self, flow: &mut Flow, origin: Origin, wanted: Wanted, effects: &mut Effects) {
        if flow.config.core == META {
            self.take(flow, origin, wanted);
        } else {
            flow.change_bytes += wanted.cost();
            self.unasked.push_back((origin, wanted));
            self.ask_meta(flow, effects);
        }
    }

    /// On the meta core: a request waits until the turn ends, and longer while no buffer is free.
    fn take(&mut self, flow: &mut Flow, origin: Origin, wanted: Wanted) {
        flow.change_bytes += wanted.cost();
        self.undecided.push_back((origin, wanted));
    }

    /// Brings to the meta core which queues are to go by themselves.
    fn retire(&mut self, flow: &mut Flow, effects: &mut Effects) {
        if !flow.is_shutting_down() {
            flow.retire_unused();
        }
        for leave in std::mem::take(&mut flow.retiring) {
            self.want(
                flow,
                Origin::Retiring(leave),
                Wanted::Retire(leave),
                effects,
            );
        }
        for owner in std::mem::take(&mut flow.owners_gone) {
            // All of them are volatile.
            if !flow.is_shutting_down() {
                self.want(flow, Origin::Nobody, Wanted::OwnerGone(owner), effects);
            }
        }
    }

    /// Asks the meta core, which may wait for its disk: not for more at a time than it has room for
    /// from every core, but for one in any case.
    fn ask_meta(&mut self, flow: &mut Flow, effects: &mut Effects) {
        let share = flow.config.limits.request_bytes_max / u64::from(flow.config.cores);
        while let Some((_, wanted)) = self.unasked.front()
            && (self.asked_bytes == 0 || self.asked_bytes + wanted.cost() <= share)
        {
            let (origin, wanted) = self.unasked.pop_front().expect("it is there");
            let bytes = wanted.cost();
            // The lane counts it from here on.
            flow.change_bytes -= bytes;
            match (wanted, origin) {
                (Wanted::Change(request), Origin::Here { conn, header }) => {
                    self.asked_bytes += bytes;
                    let waiter = self.wait(Pending::Change {
                        conn,
                        header,
                        bytes,
                    });
                    flow.ask(META, Request::Change(Box::new(request)), waiter, effects);
                }
                (Wanted::Retire(leave), _) => {
                    let waiter = self.wait(Pending::Retire(leave));
                    flow.ask(META, Request::Retire(leave), waiter, effects);
                }
                (Wanted::OwnerGone(owner), _) => {
                    let request = Request::OwnerGone { conn: owner.conn };
                    flow.ask(META, request, Waiter::Nobody, effects);
                }
                (Wanted::Change(_) | Wanted::Orphans(_), _) => {
                    unreachable!(
                        "connections ask for changes, and the meta core itself for orphans"
                    )
                }
            }
        }
    }

    /// The end of a turn: plans what was asked for and writes it into the open block.
    pub fn turn_end<B: Buffers>(
        &mut self,
        flow: &mut Flow,
        buffers: &mut B,
        effects: &mut Effects,
    ) {
        self.retire(flow, effects);
        while let Some((origin, wanted)) = self.undecided.pop_front() {
            let waiting = wanted.cost();
            flow.change_bytes -= waiting;
            if flow.failed || flow.is_shutting_down() {
                let code = if flow.failed {
                    Code::TopologyReadOnly
                } else {
                    Code::ShuttingDown
                };
                let reason = "the topology cannot change now".to_owned();
                tell(flow, origin, Err((code, reason)), effects);
                continue;
            }
            let change = match self.decide(&wanted, flow, effects) {
                Ok(Decision::Plan(Plan::Apply(change))) => change,
                Ok(Decision::Plan(Plan::AlreadyExists)) => {
                    // It may exist by a change that is still on its way to the disk.
                    let block = self.staged.back().map_or(0, |staged| staged.block);
                    flow.change_bytes += waiting;
                    self.staged.push_back(Staged {
                        block,
                        change: None,
                        origin,
                        bytes: waiting,
                    });
                    continue;
                }
                Ok(Decision::Lives) => {
                    tell(flow, origin, Ok(Changed::default()), effects);
                    continue;
                }
                Ok(Decision::Nothing) => continue,
                Err(refusal) => {
                    tell(flow, origin, Err(refusal), effects);
                    continue;
                }
            };
            let (change, orphans) = self.with_orphans(change);
            let mut bytes = Vec::new();
            change.encode(&mut bytes);
            let Ok(block) = flow.journal_change(&bytes, buffers, effects) else {
                // No buffer is free: the next turn tries again.
                flow.change_bytes += waiting;
                self.undecided.push_front((origin, wanted));
                break;
            };
            self.planned
                .apply(&change)
                .expect("it was planned on this very version");
            flow.change_bytes += waiting;
            self.staged.push_back(Staged {
                block,
                change: Some(change),
                origin,
                bytes: waiting,
            });
            // What one record cannot hold comes next.
            let rest = match wanted {
                Wanted::OwnerGone(owner) => Some(Wanted::OwnerGone(owner)),
                Wanted::Orphans(orphans) => Some(Wanted::Orphans(orphans)),
                Wanted::Change(_) | Wanted::Retire(_) => None,
            };
            let orphans = (!orphans.is_empty()).then_some(Wanted::Orphans(orphans));
            for wanted in rest.into_iter().chain(orphans) {
                flow.change_bytes += wanted.cost();
                self.undecided.push_front((Origin::Nobody, wanted));
            }
        }
        self.durable_advanced(flow, effects);
        self.go_on_listing(flow, effects);
    }

    /// What is to be done about something that is wanted.
    fn decide(
        &mut self,
        wanted: &Wanted,
        flow: &mut Flow,
        effects: &mut Effects,
    ) -> Result<Decision, Refusal> {
        let queue_deleted = |queue: &catalog::Queue| Change::QueueDeleted {
            id: queue.id,
            durability: queue.durability,
        };
        match wanted {
            Wanted::Change(request) => {
                let asked =
                    asked(request).map_err(|code| (code, "the body is malformed".to_owned()))?;
                let plan = self
                    .planned
                    .plan_for(Some(request.owner), request.tenant, &asked)?;
                let plan = self.with_room(plan, flow.config.limits.catalog_bytes_max)?;
                if let (Asked::QueueDeclare(declare), Plan::AlreadyExists) = (&asked, &plan) {
                    self.declared_again(request.tenant, declare.name, flow, effects);
                }
                Ok(Decision::Plan(plan))
            }
            Wanted::Retire(leave) => {
                let Some(queue) = self.planned.queue(leave.queue) else {
                    return Ok(Decision::Plan(Plan::AlreadyExists));
                };
                let declared = self.declared.get(&queue.id).copied().unwrap_or_default();
                let is_void = declared.untold > 0 || leave.attempt <= declared.void;
                if leave.why == Retirement::Unused && is_void && !crate::mutant!(RedeclareForgotten)
                {
                    return Ok(Decision::Lives);
                }
                Ok(Decision::Plan(Plan::Apply(queue_deleted(queue))))
            }
            Wanted::OwnerGone(owner) => {
                let queues = self.planned.queues_of(*owner).take(TOGETHER_MAX);
                Ok(together(queues.map(queue_deleted).collect()))
            }
            Wanted::Orphans(orphans) => {
                let left = orphans
                    .iter()
                    .filter(|change| self.planned.check(change).is_ok());
                Ok(together(left.take(TOGETHER_MAX).cloned().collect()))
            }
        }
    }

    /// A queue that expires was declared again: its span begins anew, here, where it is decided, and
    /// with its owner, who must not turn away those that come after the answer.
    //= P-76
    fn declared_again(
        &mut self,
        tenant: TenantId,
        name: &[u8],
        flow: &mut Flow,
        effects: &mut Effects,
    ) {
        let Some(queue) = self.planned.queue_by_name(tenant, name) else {
            return;
        };
        if self.planned.settings_of(queue).lifetime.expires_ms == 0 {
            return;
        }
        let (id, owner) = (queue.id, flow.router.core_of(queue.partition));
        let declared = self.declared.entry(id).or_default();
        if owner == flow.config.core {
            declared.void = flow.keep(id);
        } else {
            declared.untold += 1;
            let waiter = self.wait(Pending::Keep(id));
            flow.ask(owner, Request::Keep { queue: id }, waiter, effects);
        }
    }

    /// The owner of a queue has heard that it was declared again.
    fn kept(&mut self, queue: QueueId, attempts: u32) {
        // It may be deleted since.
        if let Some(declared) = self.declared.get_mut(&queue) {
            declared.untold -= 1;
            declared.void = attempts;
        }
    }

    /// A change, and as many of the exchanges that go with it as one record holds; those that are left.
    //= P-78
    fn with_orphans(&mut self, change: Change) -> (Change, Vec<Change>) {
        let deleted = match &change {
            Change::Together(changes) => changes.as_slice(),
            one => std::slice::from_ref(one),
        };
        for change in deleted {
            if let Change::QueueDeleted { id, .. } = change {
                self.declared.remove(id);
            }
        }
        let mut orphans = self.planned.orphans(&change);
        if orphans.is_empty() || crate::mutant!(OrphansStay) {
            return (change, Vec::new());
        }
        let mut changes = match change {
            Change::Together(changes) => changes,
            one => vec![one],
        };
        let room = TOGETHER_MAX - changes.len();
        let rest = orphans.split_off(room.min(orphans.len()));
        changes.extend(orphans);
        let change = match changes.len() {
            1 => changes.remove(0),
            _ => Change::Together(changes),
        };
        (change, rest)
    }

    /// Only what there is memory for, on every core. What was there at the start is served whatever it
    /// takes: the figure may have been lowered.
    fn with_room(&self, plan: Plan, bytes_max: u64) -> Result<Plan, Refusal> {
        let Plan::Apply(change) = &plan else {
            return Ok(plan);
        };
        let (used, more) = (self.planned.bytes(), change.bytes());
        if more == 0 || used + more <= bytes_max {
            return Ok(plan);
        }
        let reason = format!(
            "the routing tables take {used} of {bytes_max} bytes and this needs {more}: delete \
             something, or give the broker more memory"
        );
        Err((Code::LimitReached, reason))
    }

    /// Whether a turn is wanted without anything happening.
    #[must_use]
    pub fn wants_turn(&self, flow: &Flow) -> bool {
        let lists = self.lists.due();
        let is_retiring = !flow.retiring.is_empty() || !flow.owners_gone.is_empty();
        is_retiring || lists.iter().any(|conn| flow.takes_a_page(*conn))
    }

    /// Whether changes wait for room in the journal.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        !self.undecided.is_empty()
    }

    /// Forgets what nobody waits for any more; call now and then.
    pub fn sweep(&mut self, flow: &Flow) {
        self.lists.keep(|conn| flow.sessions.get(conn).is_some());
    }

    /// A socket has taken some bytes.
    pub fn sent(&mut self, conn: ConnId) {
        self.lists.look_at(conn);
    }

    /// Applies the changes that are durable by now.
    pub fn durable_advanced(&mut self, flow: &mut Flow, effects: &mut Effects) {
        let durable = flow.journal.durable_block().0;
        while self
            .staged
            .front()
            .is_some_and(|staged| staged.block <= durable)
        {
            let staged = self.staged.pop_front().expect("it was just looked at");
            flow.change_bytes -= staged.bytes;
            let Some(change) = staged.change else {
                flow.change_bytes += NOTE_BYTES;
                self.echoes.push_back((self.number, staged.origin));
                continue;
            };
            let messages = self.apply(flow, &change, effects);
            let left = u32::from(flow.config.cores) - 1;
            if left == 0 {
                tell(
                    flow,
                    staged.origin,
                    Ok(Changed {
                        changed: true,
                        messages,
                    }),
                    effects,
                );
                continue;
            }
            let mut bytes = Vec::new();
            change.encode(&mut bytes);
            self.wait(Pending::Apply {
                origin: staged.origin,
                left,
                messages,
            });
            for core in 1..flow.config.cores {
                let request = Request::Apply {
                    change: bytes.clone(),
                };
                flow.ask(CoreId(core), request, Waiter::Control(self.number), effects);
            }
        }
        self.echo(flow, effects);
    }

    /// Answers those who asked for what was there already, as far as it is there on every core.
    fn echo(&mut self, flow: &mut Flow, effects: &mut Effects) {
        let is_apply =
            |pending: &Pending| matches!(pending, Pending::Apply { .. } | Pending::Keep(_));
        let applying = self.pending.iter().find(|(_, pending)| is_apply(pending));
        let applied = applying.map_or(u64::MAX, |(number, _)| number - 1);
        while let Some((upto, origin)) = self.echoes.front().copied()
            && upto <= applied
        {
            self.echoes.pop_front();
            flow.change_bytes -= NOTE_BYTES;
            tell(flow, origin, Ok(Changed::default()), effects);
        }
    }

    /// The journal has failed: what was on its way is told so.
    pub fn fail_stop(&mut self, flow: &mut Flow, effects: &mut Effects) {
        while let Some(staged) = self.staged.pop_front() {
            flow.change_bytes -= staged.bytes;
            let reason = "the journal failed before the change was durable".to_owned();
            tell(
                flow,
                staged.origin,
                Err((Code::JournalFailed, reason)),
                effects,
            );
        }
    }

    /// Applies a durable change on this core. Returns the messages it dropped here.
    fn apply(&mut self, flow: &mut Flow, change: &Change, effects: &mut Effects) -> u64 {
        let before = policy_named(&self.catalog, change).cloned();
        let mut gone_lanes = self.lanes_that_go(change);
        super::routing::apply(&mut self.catalog, &mut flow.router, change)
            .expect("every core applies every change in the same order");
        let policies: Vec<&Policy> = before
            .iter()
            .chain(policy_named(&self.catalog, change))
            .collect();
        if !policies.is_empty() {
            self.follow(flow, &policies);
        }
        let changes = match change {
            Change::Together(changes) => changes.as_slice(),
            one => std::slice::from_ref(one),
        };
        let mut messages = 0;
        for change in changes {
            match change {
                Change::QueueCreated(queue) if queue.lanes() > 0 => {
                    for lane in self.catalog.list_lanes(queue.id) {
                        flow.add_queue(queue_state(&self.catalog, lane));
                    }
                }
                Change::QueueCreated(queue) => {
                    flow.add_queue(queue_state(&self.catalog, queue));
                }
                Change::QueueDeleted { id, .. } => {
                    let lanes = gone_lanes.remove(id).unwrap_or_default();
                    for id in lanes.into_iter().chain([*id]) {
                        messages += flow.delete_queue(id, effects);
                    }
                }
                _ => {}
            }
        }
        messages
    }

    /// Policies of a tenant have come, changed or gone: the queues of this core that they are about keep
    /// to what holds now.
    fn follow(&self, flow: &mut Flow, policies: &[&Policy]) {
        let tenant = policies[0].tenant;
        for queue in self.catalog.list_queues(tenant, None) {
            let is_here = flow.router.core_of(queue.partition) == flow.config.core;
            let name = self.catalog.common_name(queue);
            let takes = |policy: &&Policy| policy.takes(Subject::Queues, name);
            if is_here && policies.iter().any(takes) && !crate::mutant!(PolicyForNewOnly) {
                let settings = self.catalog.settings_of(queue);
                flow.set_queue(queue.id, settings.queue, settings.dead_letter);
                flow.set_lifetime(queue.id, settings.lifetime);
            }
        }
    }

    /// A topology request of another core.
    pub fn request(
        &mut self,
        flow: &mut Flow,
        from: CoreId,
        id: u32,
        request: Request,
        effects: &mut Effects,
    ) {
        match request {
            Request::Change(request) => {
                let origin = Origin::There { core: from, id };
                self.take(flow, origin, Wanted::Change(*request));
            }
            Request::Retire(leave) => {
                let origin = Origin::There { core: from, id };
                self.take(flow, origin, Wanted::Retire(leave));
            }
            Request::Keep { queue } => {
                let attempts = flow.keep(queue);
                flow.reply(from, id, Reply::Kept { attempts }, effects);
            }
            Request::OwnerGone { conn } => {
                let owner = Owner { core: from, conn };
                self.take(flow, Origin::Nobody, Wanted::OwnerGone(owner));
                flow.reply(from, id, Reply::Done, effects);
            }
            Request::Apply { change } => {
                let change =
                    Change::decode(&change).expect("another core of this process wrote it");
                let messages = self.apply(flow, &change, effects);
                flow.reply(from, id, Reply::Applied { messages }, effects);
            }
            Request::Inspect { queues } => {
                let figures = queues.iter().filter_map(|queue| flow.figures_of(*queue));
                let figures = figures.collect();
                flow.reply(from, id, Reply::Figures(figures), effects);
            }
            Request::Connections { tenant } => {
                let connections = flow.connections_of(tenant);
                flow.reply(from, id, Reply::Connections(connections), effects);
            }
            Request::Places { queue, ask } => {
                flow.ask_places(queue, ask, GroupAsker::There { core: from, id }, effects);
            }
            Request::Groups { queue, ask } => {
                flow.ask_groups(queue, ask, GroupAsker::There { core: from, id }, effects);
            }
            Request::Purge { queue } => {
                let outcome = flow.purge(queue);
                flow.reply(from, id, Reply::Purged(outcome), effects);
            }
            other => panic!("{other:?} is no topology request of a running core"),
        }
    }

    /// Another core has answered.
    pub fn answer(&mut self, flow: &mut Flow, number: u64, reply: Reply, effects: &mut Effects) {
        let pending = self
            .pending
            .remove(&number)
            .expect("an answer belongs to a question");
        match (pending, reply) {
            (
                Pending::Change {
                    conn,
                    header,
                    bytes,
                },
                Reply::Changed(outcome),
            ) => {
                tell(flow, Origin::Here { conn, header }, outcome, effects);
                self.asked_bytes -= bytes;
                self.ask_meta(flow, effects);
            }
            (Pending::Keep(queue), Reply::Kept { attempts }) => {
                self.kept(queue, attempts);
                self.echo(flow, effects);
            }
            (Pending::Retire(leave), Reply::Changed(outcome)) => {
                tell(flow, Origin::Retiring(leave), outcome, effects);
            }
            (
                Pending::Apply {
                    origin,
                    left,
                    messages,
                },
                Reply::Applied { messages: more },
            ) => {
                let messages = messages + more;
                if left > 1 {
                    let pending = Pending::Apply {
                        origin,
                        left: left - 1,
                        messages,
                    };
                    self.pending.insert(number, pending);
                } else {
                    tell(
                        flow,
                        origin,
                        Ok(Changed {
                            changed: true,
                            messages,
                        }),
                        effects,
                    );
                    self.echo(flow, effects);
                }
            }
            (Pending::Figures { conn, header }, Reply::Figures(figures)) => {
                self.inspected(flow, conn, header, figures.first(), effects);
            }
            (
                Pending::Page {
                    conn,
                    left,
                    mut figures,
                },
                Reply::Figures(more),
            ) => {
                figures.extend(more);
                if left > 1 {
                    let pending = Pending::Page {
                        conn,
                        left: left - 1,
                        figures,
                    };
                    self.pending.insert(number, pending);
                } else {
                    self.say_page(flow, conn, figures, effects);
                }
            }
            (
                Pending::Usage {
                    conn,
                    header,
                    request,
                },
                Reply::Figures(figures),
            ) => {
                let request = ChangeRequest {
                    usage: usage(figures.first().copied()),
                    ..request
                };
                self.change(flow, conn, header, request, effects);
            }
            (
                Pending::Tenant {
                    conn,
                    header,
                    left,
                    connections,
                    request,
                },
                Reply::Connections(more),
            ) => {
                let connections = connections + more;
                if left > 1 {
                    let pending = Pending::Tenant {
                        conn,
                        header,
                        left: left - 1,
                        connections,
                        request,
                    };
                    self.pending.insert(number, pending);
                } else {
                    self.tenant_counted(flow, conn, header, connections, request, effects);
                }
            }
            (Pending::Lanes(asked), reply) => {
                self.lane_answered(flow, number, asked, reply, effects);
            }
            (Pending::Places { conn, header }, Reply::Places(outcome)) => {
                flow.say_places(conn, header, outcome, effects);
            }
            (Pending::Groups { conn, header }, Reply::Groups(outcome)) => {
                flow.say_groups(conn, header, outcome, effects);
            }
            (Pending::Purge { conn, header }, Reply::Purged(outcome)) => {
                purged(flow, conn, header, outcome, effects);
            }
            (pending, reply) => panic!("{reply:?} does not answer {pending:?}"),
        }
    }

    /// Puts the next pages of lists together, for those who have taken the ones before.
    fn go_on_listing(&mut self, flow: &mut Flow, effects: &mut Effects) {
        for conn in self.lists.take_due() {
            let Some(session) = flow.sessions.get(conn) else {
                self.lists.forget(conn);
                continue;
            };
            if !flow.takes_a_page(conn) {
                // Who has taken all is held up by others, and nothing of its own will tell of the end.
                if session.unsent == 0 {
                    self.lists.look_at(conn);
                }
                continue;
            }
            let Some(list) = self.lists.first(conn) else {
                continue;
            };
            if list.is_asked {
                continue;
            }
            if list.header.kind == FrameKind::QueueList {
                self.ask_page(flow, conn, effects);
            } else {
                let mut page = Vec::new();
                list.write_page(&self.catalog, &mut page);
                flow.say(conn, effects, |out| out.extend_from_slice(&page));
                self.end_page(flow, conn, effects);
            }
        }
    }

    /// Asks those who own the next queues of a list what these hold.
    fn ask_page(&mut self, flow: &mut Flow, conn: ConnId, effects: &mut Effects) {
        let list = self.lists.first(conn).expect("its page is due");
        list.is_asked = true;
        let mut figures = Vec::new();
        let mut others: BTreeMap<CoreId, Vec<QueueId>> = BTreeMap::new();
        for queue in list.next_queues(&self.catalog) {
            let declared = self.catalog.queue(queue).expect("it was just listed");
            let queue = declared.id;
            let owner = flow.router.core_of(declared.partition);
            if owner == flow.config.core {
                figures.extend(flow.figures_of(queue));
            } else {
                others.entry(owner).or_default().push(queue);
            }
        }
        if others.is_empty() {
            self.say_page(flow, conn, figures, effects);
            return;
        }
        let left = u32::try_from(others.len()).expect("there are not so many cores");
        self.wait(Pending::Page {
            conn,
            left,
            figures,
        });
        for (core, queues) in others {
            let request = Request::Inspect { queues };
            flow.ask(core, request, Waiter::Control(self.number), effects);
        }
    }

    /// Everybody has said what the queues of a page hold.
    fn say_page(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        mut figures: Vec<QueueFigures>,
        effects: &mut Effects,
    ) {
        let Some(list) = self.lists.first(conn) else {
            return;
        };
        list.is_asked = false;
        let header = list.header;
        // Those that were deleted meanwhile are not on it.
        let catalog = &self.catalog;
        fold_lanes(catalog, &mut figures);
        let name = |figures: &QueueFigures| catalog.queue(figures.queue).map(|queue| &queue.name);
        figures.retain(|figures| name(figures).is_some());
        figures.sort_by(|a, b| name(a).cmp(&name(b)));
        for figures in &figures {
            self.say_info(flow, conn, header, figures, effects);
        }
        let list = self.lists.first(conn).expect("it was just looked at");
        list.count += u32::try_from(figures.len()).expect("a page has not so many");
        self.end_page(flow, conn, effects);
    }

    /// A page was said: the list goes on behind it, or is done.
    fn end_page(&mut self, flow: &mut Flow, conn: ConnId, effects: &mut Effects) {
        let list = self.lists.first(conn).expect("its page was said");
        if list.is_at_end {
            let (sequence, count) = (list.header.sequence, list.count);
            flow.say(conn, effects, |out| {
                control::write_done(out, sequence, false, count);
            });
            self.lists.pass(conn);
        }
        self.lists.look_at(conn);
    }

    fn inspect(
        &mut self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        queue: QueueId,
        effects: &mut Effects,
    ) {
        if self.catalog.lanes_of(queue) > 0 {
            self.ask_lanes(flow, (conn, header), queue, Wish::Inspect, effects);
            return;
        }
        let declared = self.catalog.queue(queue).expect("its name was just found");
        let owner = flow.router.core_of(declared.partition);
        if owner == flow.config.core {
            let figures = flow.figures_of(queue);
            self.inspected(flow, conn, header, figures.as_ref(), effects);
        } else {
            let waiter = self.wait(Pending::Figures { conn, header });
            let queues = vec![queue];
            flow.ask(owner, Request::Inspect { queues }, waiter, effects);
        }
    }

    fn inspected(
        &self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        figures: Option<&QueueFigures>,
        effects: &mut Effects,
    ) {
        let there = figures.filter(|figures| self.catalog.queue(figures.queue).is_some());
        if let Some(figures) = there {
            self.say_info(flow, conn, header, figures, effects);
        } else {
            let reason = "the queue was deleted meanwhile";
            flow.fail(conn, header, Code::QueueUnknown, reason, effects);
        }
    }

    /// Says what a queue of the catalog is and holds.
    fn say_info(
        &self,
        flow: &mut Flow,
        conn: ConnId,
        header: FrameHeader,
        figures: &QueueFigures,
        effects: &mut Effects,
    ) {
        let queue = self.catalog.queue(figures.queue).expect("it is there");
        let mut info = queue.info(flow.router.core_of(queue.partition));
        info.lanes = u16::from(self.catalog.lanes_of(queue.id));
        info.ready = figures.ready;
        info.unacked = figures.unacked;
        info.bytes = figures.bytes;
        info.published = figures.published;
        info.settled = figures.settled;
        info.consumers = figures.consumers;
        info.delayed = figures.delayed;
        info.due_ms = figures.due_ms;
        info.dead = figures.dead;
        let recent = &figures.recent;
        info.recent_ms = recent.span_ms;
        info.recent_arrived = recent.arrived;
        info.recent_left = recent.left;
        info.recent_taken = recent.taken;
        info.wait_mean_us = recent.wait_mean_us;
        info.wait_p50_us = recent.wait_p50_us;
        info.wait_p99_us = recent.wait_p99_us;
        info.wait_max_us = recent.wait_max_us;
        info.flags = if figures.damaged { QUEUE_DAMAGED } else { 0 };
        info.flags |= if figures.is_stream { QUEUE_STREAM } else { 0 };
        let header = FrameHeader::bare(FrameKind::QueueInfo, 0, header.sequence);
        flow.say(conn, effects, |out| info.write(out, header));
    }
}

/// Some deletions, in one record.
fn together(mut changes: Vec<Change>) -> Decision {
    match changes.len() {
        0 => Decision::Nothing,
        1 => Decision::Plan(Plan::Apply(changes.remove(0))),
        _ => Decision::Plan(Plan::Apply(Change::Together(changes))),
    }
}

/// Tells how a change ended.
fn tell(
    flow: &mut Flow,
    origin: Origin,
    outcome: Result<Changed, (Code, String)>,
    effects: &mut Effects,
) {
    match (origin, outcome) {
        (Origin::There { core, id }, outcome) => {
            flow.reply(core, id, Reply::Changed(outcome), effects);
        }
        (Origin::Here { conn, header }, Ok(changed)) => {
            let count = u32::try_from(changed.messages).unwrap_or(u32::MAX);
            flow.say(conn, effects, |out| {
                control::write_done(out, header.sequence, changed.changed, count);
            });
        }
        (Origin::Here { conn, header }, Err((code, reason))) => {
            flow.fail(conn, header, code, &reason, effects);
        }
        // A queue that is gone is not found.
        (Origin::Retiring(leave), _) => flow.revive(leave),
        (Origin::Nobody, _) => {}
    }
}

fn purged(
    flow: &mut Flow,
    conn: ConnId,
    header: FrameHeader,
    outcome: Result<u64, Code>,
    effects: &mut Effects,
) {
    match outcome {
        Ok(messages) => {
            let count = u32::try_from(messages).unwrap_or(u32::MAX);
            flow.say(conn, effects, |out| {
                control::write_done(out, header.sequence, messages > 0, count);
            });
        }
        Err(code) => flow.fail(conn, header, code, "the queue cannot be purged", effects),
    }
}

/// Consumers and messages, as a conditional delete looks at them.
fn usage(figures: Option<QueueFigures>) -> (u32, u64) {
    figures.map_or((0, 0), |figures| {
        let waiting = figures.ready + figures.delayed + figures.dead;
        (figures.consumers, waiting + figures.unacked)
    })
}

fn unknown_queue(
    flow: &mut Flow,
    conn: ConnId,
    header: FrameHeader,
    name: &[u8],
    effects: &mut Effects,
) {
    let reason = format!("there is no queue '{}'", String::from_utf8_lossy(name));
    flow.fail(conn, header, Code::QueueUnknown, &reason, effects);
}

/// What a request's body asks for.
fn asked(request: &ChangeRequest) -> Result<Asked<'_>, Code> {
    let body = &request.body;
    Ok(match request.kind {
        FrameKind::QueueDeclare => Asked::QueueDeclare(QueueDeclare::decode(body)?),
        FrameKind::QueueDelete => {
            let (consumers, messages) = request.usage;
            Asked::QueueDelete(
                Delete::decode(body)?,
                QueueUse {
                    consumers,
                    messages,
                },
            )
        }
        FrameKind::ExchangeDeclare => Asked::ExchangeDeclare(ExchangeDeclare::decode(body)?),
        FrameKind::ExchangeDelete => Asked::ExchangeDelete(Delete::decode(body)?),
        FrameKind::PolicySet => Asked::PolicySet(PolicySet::decode(body)?),
        FrameKind::PolicyDelete => Asked::PolicyDelete {
            name: Named::decode(body)?.name,
        },
        FrameKind::Bind => Asked::Bind(Bind::decode(body)?),
        FrameKind::Unbind => Asked::Unbind(Bind::decode(body)?),
        FrameKind::TenantDeclare => Asked::TenantDeclare {
            name: Named::decode(body)?.name,
        },
        FrameKind::TenantDelete => Asked::TenantDelete {
            name: Named::decode(body)?.name,
        },
        _ => return Err(Code::UnexpectedFrame),
    })
}

/// An empty queue as it was declared.
#[must_use]
pub fn queue_state(catalog: &Catalog, queue: &catalog::Queue) -> QueueState {
    let settings = catalog.settings_of(queue);
    let mut state = QueueState::new(queue.id, queue.tenant, queue.partition, settings.queue);
    state.name = queue.name.clone();
    state.dead_letter = settings.dead_letter.map(Box::new);
    state.mortal = Mortal::of(settings.lifetime, queue.owner);
    state.lane = catalog.lane(queue.id).map(|lane| {
        let stream = catalog.queue(lane.stream).expect("a lane is one of it");
        LaneOf {
            stream: stream.id,
            partition: stream.partition,
            lanes: catalog.lanes_of(stream.id),
            number: lane.number,
        }
    });
    state
}
