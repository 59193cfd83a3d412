//! The cached objects of one type, by namespace and name. Own code rather than kube's
//! `reflector::Store`, whose keys alone take more memory than a cached ImageWarm may.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use imagewarm_core::api::CachedObject;

/// Objects of one type. Clones share their content.
#[derive(Debug)]
pub struct Store<T> {
    hasher: RandomState,
    /// Written by the only source of the type.
    objects: Arc<RwLock<Objects<T>>>,
}

#[derive(Debug)]
struct Objects<T> {
    table: HashTable<Arc<T>>,
    by_namespace: HashMap<Box<str>, usize>,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Objects { table: HashTable::new(), by_namespace: HashMap::new() }
    }
}

impl<T> Objects<T> {
    fn added(&mut self, namespace: &str) {
        match self.by_namespace.get_mut(namespace) {
            Some(count) => *count += 1,
            None => drop(self.by_namespace.insert(namespace.into(), 1)),
        }
    }

    fn removed(&mut self, namespace: &str) {
        if let Some(count) = self.by_namespace.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.by_namespace.remove(namespace);
            }
        }
    }
}

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Store { hasher: self.hasher.clone(), objects: self.objects.clone() }
    }
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Store { hasher: RandomState::new(), objects: Arc::default() }
    }
}

impl<T: CachedObject> FromIterator<T> for Store<T> {
    fn from_iter<I: IntoIterator<Item = T>>(objects: I) -> Self {
        let store = Store::default();
        for object in objects {
            store.put(Arc::new(object));
        }
        store
    }
}

impl<T: CachedObject> Store<T> {
    /// The object of this name; `namespace` is empty for cluster-scoped types.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        let is = |one: &Arc<T>| one.namespace() == namespace && one.name() == name;
        self.read().table.find(self.hash(namespace, name), is).cloned()
    }

    /// All objects, in arbitrary order.
    pub fn state(&self) -> Vec<Arc<T>> {
        self.read().table.iter().cloned().collect()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.read().table.len()
    }

    /// Number of objects of the namespace, and of all.
    pub fn counts(&self, namespace: &str) -> (usize, usize) {
        let objects = self.read();
        (objects.by_namespace.get(namespace).copied().unwrap_or(0), objects.table.len())
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.read().table.is_empty()
    }

    /// Inserts the object. Returns the one of the same name that it replaces.
    pub(crate) fn put(&self, object: Arc<T>) -> Option<Arc<T>> {
        let hash = self.hash_of(&object);
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let is =
            |one: &Arc<T>| one.namespace() == object.namespace() && one.name() == object.name();
        match objects.table.entry(hash, is, |one| self.hash_of(one)) {
            Entry::Occupied(mut found) => Some(std::mem::replace(found.get_mut(), object)),
            Entry::Vacant(free) => {
                free.insert(object.clone());
                objects.added(object.namespace());
                None
            }
        }
    }

    /// Removes and returns the object of this name.
    pub(crate) fn take(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        let hash = self.hash(namespace, name);
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let is = |one: &Arc<T>| one.namespace() == namespace && one.name() == name;
        let removed = objects.table.find_entry(hash, is).ok()?.remove().0;
        objects.removed(removed.namespace());
        Some(removed)
    }

    /// Replaces the whole content by `new`, atomically.
    pub(super) fn replace(&self, new: Listed<T>) {
        let mut objects = Objects::default();
        new.objects.iter().for_each(|object| objects.added(object.namespace()));
        objects.table = new.objects;
        *self.objects.write().unwrap_or_else(PoisonError::into_inner) = objects;
    }

    fn read(&self) -> RwLockReadGuard<'_, Objects<T>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, namespace: &str, name: &str) -> u64 {
        self.hasher.hash_one((namespace, name))
    }

    fn hash_of(&self, object: &Arc<T>) -> u64 {
        self.hash(object.namespace(), object.name())
    }
}

/// A list that is being read for a store. Unchanged objects are shared with the store, so that
/// relisting takes no further memory.
pub(super) struct Listed<T> {
    objects: HashTable<Arc<T>>,
}

impl<T: CachedObject> Listed<T> {
    pub(super) fn new() -> Self {
        Listed { objects: HashTable::new() }
    }

    pub(super) fn add(&mut self, object: T, store: &Store<T>) {
        let known = store.get(object.namespace(), object.name());
        let known = known
            .filter(|known| known.version() == object.version() && !object.version().1.is_empty());
        let object = known.unwrap_or_else(|| Arc::new(object));
        let hash = store.hash_of(&object);
        // A page may repeat objects of the page before.
        let is =
            |one: &Arc<T>| one.namespace() == object.namespace() && one.name() == object.name();
        match self.objects.entry(hash, is, |one| store.hash_of(one)) {
            Entry::Occupied(mut found) => *found.get_mut() = object,
            Entry::Vacant(free) => drop(free.insert(object)),
        }
    }

    pub(super) fn has(&self, object: &T, store: &Store<T>) -> bool {
        let is =
            |one: &Arc<T>| one.namespace() == object.namespace() && one.name() == object.name();
        self.objects.find(store.hash(object.namespace(), object.name()), is).is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use imagewarm_core::api::CachedImageWarm;

    use super::*;
    use imagewarm_core::api::{ImageWarm, ImageWarmSpec};

    fn warm(name: &str, version: &str) -> CachedImageWarm {
        let mut warm = ImageWarm::new(name, ImageWarmSpec::default());
        warm.metadata.namespace = Some("team".into());
        warm.metadata.resource_version = Some(version.into());
        warm.into()
    }

    fn names(store: &Store<CachedImageWarm>) -> Vec<String> {
        let mut names: Vec<_> = store.state().iter().map(|one| one.name.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn objects_are_found_replaced_and_removed() {
        let store: Store<CachedImageWarm> =
            (0..100).map(|at| warm(&format!("w{at}"), "1")).collect();
        let reader = store.clone();
        assert_eq!((reader.state().len(), reader.is_empty()), (100, false));
        assert!(reader.get("team", "w7").is_some());
        assert!(reader.get("", "w7").is_none() && reader.get("team", "w100").is_none());

        let old = store.put(Arc::new(warm("w7", "2"))).unwrap();
        assert_eq!(&*old.resource_version, "1");
        assert_eq!(&*reader.get("team", "w7").unwrap().resource_version, "2");
        assert!(store.put(Arc::new(warm("new", "1"))).is_none());

        assert_eq!(reader.counts("team"), (101, 101));
        assert!(store.take("team", "w7").is_some() && store.take("team", "w7").is_none());
        assert_eq!((reader.state().len(), reader.counts("team")), (100, (100, 100)));
        assert_eq!(reader.counts("other"), (0, 100));
    }

    #[test]
    fn a_list_replaces_atomically_and_shares_unchanged_objects() {
        let store: Store<CachedImageWarm> = [("a", "1"), ("b", "1"), ("c", "1")]
            .into_iter()
            .map(|(name, version)| warm(name, version))
            .collect();
        let (a, b) = (store.get("team", "a").unwrap(), store.get("team", "b").unwrap());
        let mut listed = Listed::new();
        for (name, version) in [("a", "1"), ("b", "2"), ("d", "1"), ("d", "1")] {
            listed.add(warm(name, version), &store);
        }
        assert_eq!(names(&store), ["a", "b", "c"], "not before the list is complete");
        assert!(listed.has(&a, &store) && !listed.has(&warm("c", "1"), &store));
        store.replace(listed);
        assert_eq!(
            (names(&store), store.counts("team")),
            (["a", "b", "d"].map(String::from).to_vec(), (3, 3))
        );
        assert!(Arc::ptr_eq(&store.get("team", "a").unwrap(), &a));
        assert!(!Arc::ptr_eq(&store.get("team", "b").unwrap(), &b));
    }
}
