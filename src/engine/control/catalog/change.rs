//! One change of the topology, and its bytes in the meta journal and between cores.
//! Does not know whether a change may be made.
//!
//! ```text
//! offset  size
//! 0       4     crc32c of the bytes behind it
//! 4       1     format version, 1
//! 5       1     kind
//! 6       1     durability of what changes: a volatile change is dropped when it is replayed
//! 7       1     zero
//! 8             the kind's fields: integers little-endian, byte strings behind a u32 length
//! ```

use ringpost_wire::checksum::crc32c;
use ringpost_wire::control::{Durability, ExchangeKind, PolicySet};
use ringpost_wire::ids::{CoreId, ExchangeId, PartitionId, QueueId, TenantId};
use ringpost_wire::limits::{HEADERS_BYTES_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX};

use super::policy::Policy;
use super::{Binding, End, Exchange, Queue};
use crate::ids::{ConnId, Owner};

/// One change of the topology, with every number it hands out: applying it decides nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A tenant, and the exchanges that every tenant is born with.
    TenantCreated {
        /// Its number.
        id: TenantId,
        /// Its name.
        name: Box<[u8]>,
        /// Number of the first predeclared exchange; the others follow it.
        predeclared: ExchangeId,
    },
    /// An empty tenant is gone.
    TenantDeleted {
        /// Which.
        id: TenantId,
    },
    /// An exchange.
    ExchangeCreated(Exchange),
    /// An exchange and its bindings are gone.
    ExchangeDeleted {
        /// Which.
        id: ExchangeId,
        /// What it was.
        durability: Durability,
    },
    /// A queue.
    QueueCreated(Queue),
    /// A queue and its bindings are gone.
    QueueDeleted {
        /// Which.
        id: QueueId,
        /// What it was.
        durability: Durability,
    },
    /// A binding.
    Bound {
        /// Which.
        binding: Binding,
        /// Durable if both ends are.
        durability: Durability,
    },
    /// A binding is gone.
    Unbound {
        /// Which.
        binding: Binding,
        /// Durable if both ends are.
        durability: Durability,
    },
    /// A policy, instead of the one of its name if there is one.
    PolicySet(Policy),
    /// A policy is gone.
    PolicyDeleted {
        /// Whose it was.
        tenant: TenantId,
        /// Its name.
        name: Box<[u8]>,
    },
    /// Several, 2 to [`TOGETHER_MAX`], in one record: a crash leaves all of them or none. Each holds by
    /// itself, whichever of the others come before it; none is of this kind.
    Together(Vec<Change>),
}

/// Most changes of a [`Change::Together`].
pub const TOGETHER_MAX: usize = 64;

/// Why bytes are no change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeError {
    /// Cut short, too long, damaged, or a field outside its bounds.
    Malformed,
    /// Written by a later version of the broker.
    FormatUnknown,
}

/// Bytes of crc, format, kind, durability and the zero.
const HEAD_BYTES: usize = 8;
const FORMAT: u8 = 1;

// Kinds. A number is never used again for something else.
const TENANT_CREATED: u8 = 1;
const TENANT_DELETED: u8 = 2;
const EXCHANGE_CREATED: u8 = 3;
const EXCHANGE_DELETED: u8 = 4;
const QUEUE_CREATED: u8 = 5;
const QUEUE_DELETED: u8 = 6;
const BOUND: u8 = 7;
const UNBOUND: u8 = 8;
/// A queue that belongs to a connection: as [`QUEUE_CREATED`], with that behind it.
const EXCLUSIVE_CREATED: u8 = 9;
const TOGETHER: u8 = 10;
const POLICY_SET: u8 = 11;
const POLICY_DELETED: u8 = 12;

// What a binding leads to.
const TO_QUEUE: u32 = 1;
const TO_EXCHANGE: u32 = 2;

impl Change {
    /// Whether it outlives the process.
    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            Self::TenantCreated { .. }
            | Self::TenantDeleted { .. }
            | Self::PolicySet(_)
            | Self::PolicyDeleted { .. } => Durability::Durable,
            Self::ExchangeCreated(exchange) => exchange.durability,
            Self::QueueCreated(queue) => queue.durability,
            Self::ExchangeDeleted { durability, .. }
            | Self::QueueDeleted { durability, .. }
            | Self::Bound { durability, .. }
            | Self::Unbound { durability, .. } => *durability,
            Self::Together(changes) => {
                let each = changes.iter().map(Self::durability);
                each.max().unwrap_or(Durability::Volatile)
            }
        }
    }

    /// Appends the change's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&[FORMAT, self.kind(), self.durability() as u8, 0]);
        match self {
            Self::TenantCreated {
                id,
                name,
                predeclared,
            } => {
                put_u32(out, id.0);
                put_u32(out, predeclared.0);
                put_bytes(out, name);
            }
            Self::TenantDeleted { id } => put_u32(out, id.0),
            Self::ExchangeCreated(exchange) => {
                put_u32(out, exchange.id.0);
                put_u32(out, exchange.tenant.0);
                put_u32(out, exchange.kind as u32);
                put_bytes(out, &exchange.name);
                put_bytes(out, &exchange.arguments);
            }
            Self::ExchangeDeleted { id, .. } => put_u32(out, id.0),
            Self::QueueCreated(queue) => {
                put_u32(out, queue.id.0);
                put_u32(out, queue.epoch);
                put_u32(out, queue.tenant.0);
                put_u32(out, u32::from(queue.partition.0));
                out.extend_from_slice(&queue.messages_max.to_le_bytes());
                out.extend_from_slice(&queue.bytes_max.to_le_bytes());
                put_bytes(out, &queue.name);
                put_bytes(out, &queue.arguments);
                if let Some(owner) = queue.owner {
                    put_u32(out, u32::from(owner.core.0));
                    out.extend_from_slice(&owner.conn.0.to_le_bytes());
                }
            }
            Self::QueueDeleted { id, .. } => put_u32(out, id.0),
            Self::Bound { binding, .. } | Self::Unbound { binding, .. } => {
                put_u32(out, binding.exchange.0);
                let (kind, number) = match binding.end {
                    End::Queue(id) => (TO_QUEUE, id.0),
                    End::Exchange(id) => (TO_EXCHANGE, id.0),
                };
                put_u32(out, kind);
                put_u32(out, number);
                put_bytes(out, &binding.key);
                put_bytes(out, &binding.arguments);
            }
            Self::PolicySet(policy) => {
                put_u32(out, policy.tenant.0);
                let info = policy.info();
                put_u32(out, info.priority);
                put_u32(out, u32::from(info.applies));
                put_bytes(out, info.name);
                put_bytes(out, info.pattern);
                put_bytes(out, info.options);
            }
            Self::PolicyDeleted { tenant, name } => {
                put_u32(out, tenant.0);
                put_bytes(out, name);
            }
            Self::Together(changes) => {
                for change in changes {
                    let mut bytes = Vec::new();
                    change.encode(&mut bytes);
                    put_bytes(out, &bytes);
                }
            }
        }
        let crc = crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a change; every byte is accounted for.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ChangeError> {
        let (head, rest) = bytes
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or(ChangeError::Malformed)?;
        let [a, b, c, d, format, kind, durability, zero] = *head;
        if u32::from_le_bytes([a, b, c, d]) != crc32c(&bytes[4..]) {
            return Err(ChangeError::Malformed);
        }
        if format != FORMAT {
            return Err(ChangeError::FormatUnknown);
        }
        let durability = Durability::from_number(durability);
        let durability = durability
            .filter(|_| zero == 0)
            .ok_or(ChangeError::Malformed)?;
        let mut fields = Fields { rest };
        let change = fields.change(kind, durability)?;
        if fields.rest.is_empty() && change.durability() == durability {
            Ok(change)
        } else {
            Err(ChangeError::Malformed)
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::TenantCreated { .. } => TENANT_CREATED,
            Self::TenantDeleted { .. } => TENANT_DELETED,
            Self::ExchangeCreated(_) => EXCHANGE_CREATED,
            Self::ExchangeDeleted { .. } => EXCHANGE_DELETED,
            Self::QueueCreated(queue) if queue.owner.is_some() => EXCLUSIVE_CREATED,
            Self::QueueCreated(_) => QUEUE_CREATED,
            Self::QueueDeleted { .. } => QUEUE_DELETED,
            Self::Bound { .. } => BOUND,
            Self::Unbound { .. } => UNBOUND,
            Self::Together(_) => TOGETHER,
            Self::PolicySet(_) => POLICY_SET,
            Self::PolicyDeleted { .. } => POLICY_DELETED,
        }
    }
}

/// Fields that are left to read.
struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn change(&mut self, kind: u8, durability: Durability) -> Result<Change, ChangeError> {
        Ok(match kind {
            TENANT_CREATED => {
                let id = TenantId(self.u32()?);
                let predeclared = ExchangeId(self.u32()?);
                let name = self.bytes(NAME_BYTES_MAX)?;
                Change::TenantCreated {
                    id,
                    name,
                    predeclared,
                }
            }
            TENANT_DELETED => Change::TenantDeleted {
                id: TenantId(self.u32()?),
            },
            EXCHANGE_CREATED => Change::ExchangeCreated(Exchange {
                id: ExchangeId(self.u32()?),
                tenant: TenantId(self.u32()?),
                kind: u8::try_from(self.u32()?)
                    .ok()
                    .and_then(ExchangeKind::from_number)
                    .ok_or(ChangeError::Malformed)?,
                durability,
                name: self.bytes(NAME_BYTES_MAX)?,
                arguments: self.bytes(HEADERS_BYTES_MAX)?,
            }),
            EXCHANGE_DELETED => Change::ExchangeDeleted {
                id: ExchangeId(self.u32()?),
                durability,
            },
            QUEUE_CREATED => Change::QueueCreated(self.queue(durability)?),
            EXCLUSIVE_CREATED => {
                let mut queue = self.queue(durability)?;
                queue.owner = Some(Owner {
                    core: CoreId(self.u16_in_u32()?),
                    conn: ConnId(self.u64()?),
                });
                if durability == Durability::Durable {
                    return Err(ChangeError::Malformed);
                }
                Change::QueueCreated(queue)
            }
            POLICY_SET => {
                let tenant = TenantId(self.u32()?);
                let priority = self.u32()?;
                let applies = u8::try_from(self.u32()?).map_err(|_| ChangeError::Malformed)?;
                let (name, pattern) = (self.bytes(NAME_BYTES_MAX)?, self.bytes(NAME_BYTES_MAX)?);
                let options = self.bytes(HEADERS_BYTES_MAX)?;
                let asked = PolicySet {
                    priority,
                    applies,
                    flags: 0,
                    reserved: 0,
                    name: &name,
                    pattern: &pattern,
                    options: &options,
                };
                let policy = Policy::of(tenant, &asked);
                Change::PolicySet(policy.map_err(|_| ChangeError::Malformed)?)
            }
            POLICY_DELETED => Change::PolicyDeleted {
                tenant: TenantId(self.u32()?),
                name: self.bytes(NAME_BYTES_MAX)?,
            },
            TOGETHER => {
                let mut changes = Vec::new();
                while !self.rest.is_empty() {
                    let change = Change::decode(&self.bytes(usize::MAX)?)?;
                    let is_one = !matches!(change, Change::Together(_));
                    if !is_one || changes.len() == TOGETHER_MAX {
                        return Err(ChangeError::Malformed);
                    }
                    changes.push(change);
                }
                if changes.len() < 2 {
                    return Err(ChangeError::Malformed);
                }
                Change::Together(changes)
            }
            QUEUE_DELETED => Change::QueueDeleted {
                id: QueueId(self.u32()?),
                durability,
            },
            BOUND => Change::Bound {
                binding: self.binding()?,
                durability,
            },
            UNBOUND => Change::Unbound {
                binding: self.binding()?,
                durability,
            },
            _ => return Err(ChangeError::FormatUnknown),
        })
    }

    fn queue(&mut self, durability: Durability) -> Result<Queue, ChangeError> {
        Ok(Queue {
            id: QueueId(self.u32()?),
            epoch: self.u32()?,
            tenant: TenantId(self.u32()?),
            durability,
            partition: PartitionId(self.u16_in_u32()?),
            messages_max: self.u64()?,
            bytes_max: self.u64()?,
            name: self.bytes(NAME_BYTES_MAX)?,
            arguments: self.bytes(HEADERS_BYTES_MAX)?,
            owner: None,
        })
    }

    fn u16_in_u32(&mut self) -> Result<u16, ChangeError> {
        u16::try_from(self.u32()?).map_err(|_| ChangeError::Malformed)
    }

    fn binding(&mut self) -> Result<Binding, ChangeError> {
        Ok(Binding {
            exchange: ExchangeId(self.u32()?),
            end: match (self.u32()?, self.u32()?) {
                (TO_QUEUE, number) => End::Queue(QueueId(number)),
                (TO_EXCHANGE, number) => End::Exchange(ExchangeId(number)),
                _ => return Err(ChangeError::Malformed),
            },
            key: self.bytes(KEY_BYTES_MAX)?,
            arguments: self.bytes(HEADERS_BYTES_MAX)?,
        })
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], ChangeError> {
        let (fixed, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(ChangeError::Malformed)?;
        self.rest = rest;
        Ok(*fixed)
    }

    fn u32(&mut self) -> Result<u32, ChangeError> {
        self.fixed().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ChangeError> {
        self.fixed().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, max: usize) -> Result<Box<[u8]>, ChangeError> {
        let length = self.u32()? as usize;
        let cut = self.rest.split_at_checked(length);
        let (bytes, rest) = cut
            .filter(|_| length <= max)
            .ok_or(ChangeError::Malformed)?;
        self.rest = rest;
        Ok(bytes.into())
    }
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("limits of the wire are far below 4 GiB");
    put_u32(out, length);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One change of every kind.
    pub(crate) fn every_kind() -> Vec<Change> {
        let binding = Binding {
            exchange: ExchangeId(9),
            end: End::Queue(QueueId(3)),
            key: b"order.*"[..].into(),
            arguments: b"\x01at\x01"[..].into(),
        };
        let durability = Durability::Volatile;
        let queue = Queue {
            id: QueueId(3),
            epoch: 1,
            tenant: TenantId(1),
            name: b"orders"[..].into(),
            durability: Durability::Durable,
            partition: PartitionId(63),
            messages_max: 1 << 40,
            bytes_max: 7,
            arguments: b"\x01bV"[..].into(),
            owner: None,
        };
        let own = Queue {
            durability,
            owner: Some(Owner {
                core: CoreId(2),
                conn: ConnId(1 << 40),
            }),
            ..queue.clone()
        };
        let asked = PolicySet {
            priority: -7_i32 as u32,
            applies: 3,
            flags: 0,
            reserved: 0,
            name: b"limits",
            pattern: b"^o",
            options: b"\x09x-expiresb\x07",
        };
        let policy = Policy::of(TenantId(2), &asked).expect("a sound policy");
        let exchange = Exchange {
            id: ExchangeId(9),
            tenant: TenantId(2),
            name: b"shop"[..].into(),
            kind: ExchangeKind::Topic,
            durability,
            arguments: Box::default(),
        };
        vec![
            Change::TenantCreated {
                id: TenantId(2),
                name: b"blue"[..].into(),
                predeclared: ExchangeId(7),
            },
            Change::TenantDeleted { id: TenantId(2) },
            Change::PolicySet(policy),
            Change::PolicyDeleted {
                tenant: TenantId(2),
                name: b"limits"[..].into(),
            },
            Change::ExchangeCreated(exchange),
            Change::ExchangeDeleted {
                id: ExchangeId(9),
                durability,
            },
            Change::QueueCreated(queue),
            Change::QueueCreated(own),
            Change::Together(vec![
                Change::QueueDeleted {
                    id: QueueId(4),
                    durability,
                },
                Change::ExchangeDeleted {
                    id: ExchangeId(8),
                    durability: Durability::Durable,
                },
            ]),
            Change::QueueDeleted {
                id: QueueId(3),
                durability,
            },
            Change::Bound {
                binding: binding.clone(),
                durability: Durability::Durable,
            },
            Change::Bound {
                binding: Binding {
                    end: End::Exchange(ExchangeId(4)),
                    ..binding.clone()
                },
                durability,
            },
            Change::Unbound {
                binding,
                durability,
            },
        ]
    }

    #[test]
    fn changes_survive_and_every_cut_and_flip_is_seen() {
        for change in every_kind() {
            let mut bytes = vec![0xee; 3];
            change.encode(&mut bytes);
            let mut bytes = bytes.split_off(3);
            assert_eq!(Change::decode(&bytes), Ok(change));
            for at in 0..bytes.len() {
                let cut = Change::decode(&bytes[..at]);
                assert_eq!(cut, Err(ChangeError::Malformed), "cut at {at}");
                for bit in 0..8 {
                    bytes[at] ^= 1 << bit;
                    assert!(Change::decode(&bytes).is_err(), "bit {bit} of byte {at}");
                    bytes[at] ^= 1 << bit;
                }
            }
            bytes.push(0);
            assert_eq!(Change::decode(&bytes), Err(ChangeError::Malformed));
        }
    }

    /// Damage that the checksum does not see, because whoever wrote it computed it.
    #[test]
    fn fields_are_checked_behind_a_good_checksum() {
        let sealed = |mut bytes: Vec<u8>| {
            let crc = crc32c(&bytes[4..]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
            Change::decode(&bytes)
        };
        for change in every_kind() {
            let mut bytes = Vec::new();
            change.encode(&mut bytes);
            for len in HEAD_BYTES..bytes.len() {
                assert!(sealed(bytes[..len].to_vec()).is_err(), "cut at {len}");
            }
            for at in 4..bytes.len() {
                for bit in 0..8 {
                    let mut bent = bytes.clone();
                    bent[at] ^= 1 << bit;
                    if let Ok(other) = sealed(bent.clone()) {
                        let mut again = Vec::new();
                        other.encode(&mut again);
                        assert_eq!(again[4..], bent[4..], "one change, one encoding");
                    }
                }
            }
            let mut later = bytes.clone();
            later[4] = FORMAT + 1;
            assert_eq!(sealed(later), Err(ChangeError::FormatUnknown));
            let mut unknown = bytes.clone();
            unknown[5] = 99;
            assert_eq!(sealed(unknown), Err(ChangeError::FormatUnknown));
            let mut longer = bytes;
            longer.push(0);
            assert_eq!(sealed(longer), Err(ChangeError::Malformed));
        }
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = Vec::new();
        Change::QueueDeleted {
            id: QueueId(0x0102_0304),
            durability: Durability::Durable,
        }
        .encode(&mut bytes);
        assert_eq!(bytes[4..], [1, 6, 1, 0, 4, 3, 2, 1]);
        assert_eq!(bytes[..4], crc32c(&bytes[4..]).to_le_bytes());
    }
}
