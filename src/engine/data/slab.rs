//! A vector of slots with keys that carry a generation, so that a key outlives its value safely.
//! Does not know what it holds.

/// Values under keys; a key of a removed value finds nothing, also after its slot was used again.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    count: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            count: 0,
        }
    }
}

impl<T> Slab<T> {
    /// Values held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes a value; its key is never given again.
    pub fn insert(&mut self, value: T) -> u64 {
        let idx = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[idx as usize];
        slot.generation += 1;
        slot.value = Some(value);
        self.count += 1;
        u64::from(slot.generation) << 32 | u64::from(idx)
    }

    fn slot(&self, key: u64) -> Option<&Slot<T>> {
        let slot = self.slots.get((key & u64::from(u32::MAX)) as usize)?;
        (u64::from(slot.generation) == key >> 32).then_some(slot)
    }

    /// The value under `key`.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&T> {
        self.slot(key)?.value.as_ref()
    }

    /// The value under `key`.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        self.slot(key)?;
        self.slots[(key & u64::from(u32::MAX)) as usize]
            .value
            .as_mut()
    }

    /// Gives the value under `key` back.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        self.slot(key)?;
        let idx = (key & u64::from(u32::MAX)) as u32;
        let slot = &mut self.slots[idx as usize];
        let value = slot.value.take()?;
        // A slot whose generations are used up is never used again: keys stay unique for ever.
        if slot.generation < u32::MAX {
            self.free.push(idx);
        }
        self.count -= 1;
        Some(value)
    }

    /// Takes the value under `key` out while its key stays in use, until [`Slab::put`].
    pub fn take(&mut self, key: u64) -> Option<T> {
        self.slot(key)?;
        self.slots[(key & u64::from(u32::MAX)) as usize]
            .value
            .take()
    }

    /// Puts back what [`Slab::take`] took.
    pub fn put(&mut self, key: u64, value: T) {
        assert!(
            self.slot(key).is_some_and(|slot| slot.value.is_none()),
            "put follows take"
        );
        self.slots[(key & u64::from(u32::MAX)) as usize].value = Some(value);
    }

    /// Every key, in the order of the slots.
    pub fn keys(&self) -> impl Iterator<Item = u64> + '_ {
        self.slots.iter().enumerate().filter_map(|(idx, slot)| {
            slot.value
                .as_ref()
                .map(|_| u64::from(slot.generation) << 32 | idx as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_finds_another_value() {
        let mut slab = Slab::default();
        let one = slab.insert(1);
        assert_eq!(slab.get(one), Some(&1));
        assert_eq!(slab.remove(one), Some(1));
        assert_eq!(slab.remove(one), None);
        let two = slab.insert(2);
        assert_eq!((slab.get(one), slab.get(two)), (None, Some(&2)));
        assert_eq!(slab.keys().collect::<Vec<_>>(), [two]);
        assert_eq!(slab.len(), 1);
    }
}
