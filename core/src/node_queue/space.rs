//! The disk space check before and during a pull. More space stays free than the kubelet's
//! thresholds require: a warmed image must never trigger image garbage collection or the eviction
//! of Pods.

use crate::runtime::Space;

/// Why `wanted_bytes` more do not fit; `None` when they do. `keep_free` is the percentage of the
/// file system that must stay free afterwards.
pub fn shortage(space: Space, wanted_bytes: u64, keep_free: u8) -> Option<String> {
    let Space { free_bytes, capacity_bytes } = space;
    let reserved = (u128::from(capacity_bytes) * u128::from(keep_free)).div_ceil(100);
    if u128::from(free_bytes) >= reserved + u128::from(wanted_bytes) {
        return None;
    }
    let reserved = u64::try_from(reserved).unwrap_or(u64::MAX);
    Some(format!(
        "the image file system has {} of {} free: the pull is taken to need {}, and {keep_free}% \
         ({}) has to stay free",
        megabytes(free_bytes),
        megabytes(capacity_bytes),
        megabytes(wanted_bytes),
        megabytes(reserved),
    ))
}

/// The message when less than `keep_free` percent is free during a pull; `None` otherwise.
pub fn low(space: Space, keep_free: u8) -> Option<String> {
    shortage(space, 0, keep_free)?;
    Some(format!(
        "the image turned out to be larger than expected, or others filled the disk: the image file \
         system has {} of {} free, and {keep_free}% has to stay free",
        megabytes(space.free_bytes),
        megabytes(space.capacity_bytes),
    ))
}

/// Tenths below 100 MB, whole ones above.
fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    if tenths < 1_000 {
        format!("{}.{} MB", tenths / 10, tenths % 10)
    } else {
        format!("{} MB", tenths / 10)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn a_pull_needs_its_own_room_and_what_is_reserved_free() {
        // free, capacity, wanted (MB), percentage reserved free, whether it may be pulled
        let table = [
            (1_000, 1_000, 0, 0, true),
            (200, 1_000, 50, 15, true),
            (199, 1_000, 50, 15, false),
            (149, 1_000, 0, 15, false),
            (150, 1_000, 0, 15, true),
            (50, 1_000, 50, 0, true),
            (49, 1_000, 50, 0, false),
            (0, 0, 0, 15, true),
            (0, 1_000, 0, 0, true),
            (990, 1_000, 0, 99, true),
            (1_000, 1_000, 11, 99, false),
        ];
        for (free, capacity, wanted, keep_free, goes) in table {
            let space = Space { free_bytes: free * MB, capacity_bytes: capacity * MB };
            let shortage = shortage(space, wanted * MB, keep_free);
            let row = format!("{free} of {capacity}, wanted {wanted}, reserved {keep_free}%");
            assert_eq!(shortage.is_none(), goes, "{row}: {shortage:?}");
        }
        let huge = Space { free_bytes: u64::MAX, capacity_bytes: u64::MAX };
        assert_eq!(shortage(huge, 1, 99), None);
        assert!(shortage(huge, u64::MAX, 99).is_some());
    }

    #[test]
    fn a_disk_is_low_once_less_is_free_than_has_to_stay() {
        let space = |free| Space { free_bytes: free * MB, capacity_bytes: 1_000 * MB };
        assert_eq!(low(space(150), 15), None);
        let message = low(space(149), 15).unwrap();
        assert!(
            message.ends_with("has 149 MB of 1000 MB free, and 15% has to stay free"),
            "{message}"
        );
    }

    #[test]
    fn a_shortage_is_stated_in_numbers() {
        let space = Space { free_bytes: 15_340_000, capacity_bytes: 128 * MB };
        insta::assert_snapshot!(
            shortage(space, 512 * MB, 15).unwrap(),
            @"the image file system has 15.3 MB of 128 MB free: the pull is taken to need 512 MB, and 15% (19.2 MB) has to stay free"
        );
    }
}
