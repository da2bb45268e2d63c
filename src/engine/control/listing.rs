//! Lists that connections asked for, page by page: the next page is put together when the socket has
//! taken those before it, so that nobody who asks and does not read takes memory.
//! Does not know what queues hold, nor who is asked about it.

use std::collections::{BTreeMap, VecDeque};

use ringpost_wire::control::Body;
use ringpost_wire::ids::{QueueId, TenantId};
use ringpost_wire::{FrameHeader, FrameKind};

use crate::control::catalog::{BindingCursor, Catalog};
use crate::ids::ConnId;

/// Lists of a connection that are not answered; one more fails.
pub const LISTS_MAX: usize = 16;
/// A page ends with the item that reaches so many bytes.
const PAGE_BYTES: usize = 32 << 10;
/// Queues of a page: other cores are asked about all of them together.
const PAGE_QUEUES: usize = 128;

/// Where the next page begins.
#[derive(Debug)]
enum Behind {
    Nothing,
    Name(Box<[u8]>),
    Binding(BindingCursor),
}

impl Behind {
    fn name(&self) -> Option<&[u8]> {
        match self {
            Self::Name(name) => Some(name),
            Self::Nothing | Self::Binding(_) => None,
        }
    }

    const fn binding(&self) -> Option<&BindingCursor> {
        match self {
            Self::Binding(cursor) => Some(cursor),
            Self::Nothing | Self::Name(_) => None,
        }
    }
}

/// One list, as far as it was answered.
#[derive(Debug)]
pub struct Listing {
    /// The request.
    pub header: FrameHeader,
    /// What of it is asked of other cores at the moment.
    pub is_asked: bool,
    /// Nothing is behind what was asked for.
    pub is_at_end: bool,
    /// Items that were said.
    pub count: u32,
    tenant: TenantId,
    behind: Behind,
}

impl Listing {
    fn new(header: FrameHeader, tenant: TenantId) -> Self {
        Self {
            header,
            is_asked: false,
            is_at_end: false,
            count: 0,
            tenant,
            behind: Behind::Nothing,
        }
    }

    /// The next queues of a list of queues, by name; of a stream of several lanes these.
    pub fn next_queues(&mut self, catalog: &Catalog) -> Vec<QueueId> {
        let behind = self.behind.name();
        let page: Vec<_> = catalog
            .list_whole_queues(self.tenant, behind)
            .take(PAGE_QUEUES)
            .collect();
        self.is_at_end = page.len() < PAGE_QUEUES;
        let mut queues = Vec::with_capacity(page.len());
        for queue in &page {
            match catalog.lanes_of(queue.id) {
                0 => queues.push(queue.id),
                _ => queues.extend(catalog.list_lanes(queue.id).map(|lane| lane.id)),
            }
        }
        if let Some(last) = page.last() {
            self.behind = Behind::Name(last.name.clone());
        }
        queues
    }

    /// Writes the next items of any other list, of which every core knows all.
    pub fn write_page(&mut self, catalog: &Catalog, out: &mut Vec<u8>) {
        let sequence = self.header.sequence;
        let answer = |kind| FrameHeader::bare(kind, 0, sequence);
        let page = match self.header.kind {
            FrameKind::ExchangeList => {
                let all = catalog.list_exchanges(self.tenant, self.behind.name());
                let page = Page::fill(out, all, |exchange, out| {
                    exchange.info().write(out, answer(FrameKind::ExchangeInfo));
                });
                page.map(|last| Behind::Name(last.name.clone()))
            }
            FrameKind::BindingList => {
                let all = catalog.list_bindings(self.tenant, self.behind.binding());
                let page = Page::fill(out, all, |binding, out| {
                    binding.info().write(out, answer(FrameKind::BindingInfo));
                });
                page.map(|last| Behind::Binding(last.cursor()))
            }
            FrameKind::QueueDescribe => {
                let all = catalog.list_whole_queues(self.tenant, self.behind.name());
                let page = Page::fill(out, all, |queue, out| {
                    let options = catalog.options_of(queue);
                    let answer = answer(FrameKind::QueueDescription);
                    queue.description(&options).write(out, answer);
                });
                page.map(|last| Behind::Name(last.name.clone()))
            }
            FrameKind::PolicyList => {
                let all = catalog.list_policies(self.tenant, self.behind.name());
                let page = Page::fill(out, all, |policy, out| {
                    policy.info().write(out, answer(FrameKind::PolicyInfo));
                });
                page.map(|last| Behind::Name(last.name.clone()))
            }
            kind => {
                assert_eq!(kind, FrameKind::TenantList, "queues are asked about");
                let all = catalog.list_tenants(self.behind.name());
                let page = Page::fill(out, all, |tenant, out| {
                    tenant.info().write(out, answer(FrameKind::TenantInfo));
                });
                page.map(|last| Behind::Name(last.name.clone()))
            }
        };
        self.count += page.count;
        self.is_at_end = page.is_at_end;
        if let Some(behind) = page.last {
            self.behind = behind;
        }
    }
}

/// What a page came to.
struct Page<T> {
    last: Option<T>,
    count: u32,
    is_at_end: bool,
}

impl<T> Page<T> {
    /// Writes items until the page is full.
    fn fill(
        out: &mut Vec<u8>,
        items: impl Iterator<Item = T>,
        write: impl Fn(&T, &mut Vec<u8>),
    ) -> Self {
        let mut page = Self {
            last: None,
            count: 0,
            is_at_end: true,
        };
        for item in items {
            if out.len() >= PAGE_BYTES {
                page.is_at_end = false;
                break;
            }
            write(&item, out);
            page.count += 1;
            page.last = Some(item);
        }
        page
    }

    fn map<U>(self, of: impl FnOnce(T) -> U) -> Page<U> {
        Page {
            last: self.last.map(of),
            count: self.count,
            is_at_end: self.is_at_end,
        }
    }
}

/// The lists of every connection; of each the first is being answered.
#[derive(Debug, Default)]
pub struct Listings {
    by_conn: BTreeMap<ConnId, VecDeque<Listing>>,
    /// Connections whose next page may be wanted.
    due: Vec<ConnId>,
}

impl Listings {
    /// Adds a list to those of a connection. Returns whether there was room for one more.
    #[must_use]
    pub fn add(&mut self, conn: ConnId, header: FrameHeader, tenant: TenantId) -> bool {
        let lists = self.by_conn.entry(conn).or_default();
        if lists.len() >= LISTS_MAX {
            return false;
        }
        lists.push_back(Listing::new(header, tenant));
        self.look_at(conn);
        true
    }

    /// Whether a connection waits for one.
    #[must_use]
    pub fn has(&self, conn: ConnId) -> bool {
        self.by_conn.contains_key(&conn)
    }

    /// The list of a connection that is being answered.
    pub fn first(&mut self, conn: ConnId) -> Option<&mut Listing> {
        self.by_conn.get_mut(&conn)?.front_mut()
    }

    /// The first list of a connection was answered.
    pub fn pass(&mut self, conn: ConnId) {
        let lists = self.by_conn.get_mut(&conn).expect("its list was answered");
        lists.pop_front();
        if lists.is_empty() {
            self.by_conn.remove(&conn);
        }
    }

    /// A connection is gone.
    pub fn forget(&mut self, conn: ConnId) {
        self.by_conn.remove(&conn);
    }

    /// Forgets those connections that are gone.
    pub fn keep(&mut self, is_there: impl Fn(ConnId) -> bool) {
        self.by_conn.retain(|conn, _| is_there(*conn));
    }

    /// A connection may want its next page.
    pub fn look_at(&mut self, conn: ConnId) {
        if self.has(conn) && !self.due.contains(&conn) {
            self.due.push(conn);
        }
    }

    /// Those connections, once.
    pub fn take_due(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.due)
    }

    /// The same, to be looked at.
    #[must_use]
    pub fn due(&self) -> &[ConnId] {
        &self.due
    }
}
