//! The metadata that a cache reads from an object of any type.

use kube_core::Resource;

use super::{CachedImageWarm, DeploymentConfig};

/// An object that a cache holds.
pub trait CachedObject: Send + Sync + 'static {
    /// Its namespace; empty without.
    fn namespace(&self) -> &str;
    /// Its name.
    fn name(&self) -> &str;
    /// Its uid and version; empty where it has none.
    fn version(&self) -> (&str, &str);
}

impl<K: Resource<DynamicType = ()> + Send + Sync + 'static> CachedObject for K {
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    fn version(&self) -> (&str, &str) {
        let meta = self.meta();
        let (uid, version) = (meta.uid.as_deref(), meta.resource_version.as_deref());
        (uid.unwrap_or_default(), version.unwrap_or_default())
    }
}

impl CachedObject for CachedImageWarm {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> (&str, &str) {
        (&self.uid, &self.resource_version)
    }
}

impl CachedObject for DeploymentConfig {
    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn version(&self) -> (&str, &str) {
        let (uid, version) = (&self.metadata.uid, &self.metadata.resource_version);
        (uid.as_deref().unwrap_or_default(), version.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Revision;
    use crate::sample::revision;

    #[test]
    fn the_metadata_of_both_kinds_of_objects_is_read() {
        let read = |object: &dyn CachedObject| {
            let (uid, version) = object.version();
            [object.namespace(), object.name(), uid, version].map(str::to_owned)
        };
        let mut demanded: Revision = revision("r-1", 0, &["app:v1"]);
        demanded.metadata.resource_version = Some("7".into());
        assert_eq!(read(&demanded), ["ns", "r-1", "uid-r-1", "7"]);
        assert_eq!(read(&Revision::default()), ["", "", "", ""]);
        let warm = CachedImageWarm {
            namespace: "ns".into(),
            name: "w".into(),
            uid: "u".into(),
            resource_version: "8".into(),
            ..CachedImageWarm::default()
        };
        assert_eq!(read(&warm), ["ns", "w", "u", "8"]);
    }
}
