//! The cached objects of one type, by namespace and name, so that what concerns one namespace costs what that
//! namespace holds. Own code rather than kube's
//! `reflector::Store`, whose keys alone take more memory than a cached ImageWarm may.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
    /// By namespace; no table is empty.
    tables: HashMap<Box<str>, HashTable<Arc<T>>>,
    count: usize,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Objects { tables: HashMap::new(), count: 0 }
    }
}

impl<T: CachedObject> Objects<T> {
    fn find(&self, hasher: &RandomState, namespace: &str, name: &str) -> Option<&Arc<T>> {
        let table = self.tables.get(namespace)?;
        table.find(hasher.hash_one(name), |one| one.name() == name)
    }

    fn put(&mut self, hasher: &RandomState, object: Arc<T>) -> Option<Arc<T>> {
        let table = match self.tables.get_mut(object.namespace()) {
            Some(table) => table,
            None => self.tables.entry(object.namespace().into()).or_default(),
        };
        let is = |one: &Arc<T>| one.name() == object.name();
        let hash = |one: &Arc<T>| hasher.hash_one(one.name());
        match table.entry(hash(&object), is, hash) {
            Entry::Occupied(mut found) => Some(std::mem::replace(found.get_mut(), object)),
            Entry::Vacant(free) => {
                free.insert(object.clone());
                self.count += 1;
                None
            }
        }
    }

    fn take(&mut self, hasher: &RandomState, namespace: &str, name: &str) -> Option<Arc<T>> {
        let table = self.tables.get_mut(namespace)?;
        let found = table.find_entry(hasher.hash_one(name), |one| one.name() == name);
        let removed = found.ok()?.remove().0;
        self.count -= 1;
        if table.is_empty() {
            self.tables.remove(namespace);
        }
        Some(removed)
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
        self.read().find(&self.hasher, namespace, name).cloned()
    }

    /// All objects, in arbitrary order.
    pub fn state(&self) -> Vec<Arc<T>> {
        self.read().tables.values().flatten().cloned().collect()
    }

    /// All objects of these namespaces, in arbitrary order.
    pub fn in_namespaces<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<Arc<T>> {
        let objects = self.read();
        let tables = names.into_iter().filter_map(|name| objects.tables.get(name));
        tables.flatten().cloned().collect()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.read().count
    }

    /// Number of objects of the namespace, and of all.
    pub fn counts(&self, namespace: &str) -> (usize, usize) {
        let objects = self.read();
        (objects.tables.get(namespace).map_or(0, HashTable::len), objects.count)
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Inserts the object. Returns the one of the same name that it replaces.
    pub(crate) fn put(&self, object: Arc<T>) -> Option<Arc<T>> {
        self.write().put(&self.hasher, object)
    }

    /// Removes and returns the object of this name.
    pub(crate) fn take(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.write().take(&self.hasher, namespace, name)
    }

    /// Replaces the whole content by `new`, atomically.
    pub(super) fn replace(&self, new: Listed<T>) {
        *self.write() = new.objects;
    }

    fn read(&self) -> RwLockReadGuard<'_, Objects<T>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Objects<T>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A list that is being read for a store. Unchanged objects are shared with the store, so that
/// relisting takes no further memory.
pub(super) struct Listed<T> {
    objects: Objects<T>,
}

impl<T: CachedObject> Listed<T> {
    pub(super) fn new() -> Self {
        Listed { objects: Objects::default() }
    }

    /// Adds an object. A page may repeat objects of the page before.
    pub(super) fn add(&mut self, object: T, store: &Store<T>) {
        let known = store.get(object.namespace(), object.name());
        let known = known
            .filter(|known| known.version() == object.version() && !object.version().1.is_empty());
        let object = known.unwrap_or_else(|| Arc::new(object));
        self.objects.put(&store.hasher, object);
    }

    pub(super) fn has(&self, object: &T, store: &Store<T>) -> bool {
        self.objects.find(&store.hasher, object.namespace(), object.name()).is_some()
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
        let in_namespaces = |names: &[&str]| reader.in_namespaces(names.iter().copied()).len();
        assert_eq!((in_namespaces(&["team", "other"]), in_namespaces(&["other"])), (100, 0));

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
