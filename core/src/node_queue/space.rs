//! The disk space check before and during a pull. More space stays free than the kubelet's
//! thresholds require: a warmed image must never trigger image garbage collection or the eviction
//! of Pods.

use std::time::Duration;

use crate::runtime::Space;

/// No pull writes faster than this, in bytes and in files per second.
const FASTEST_BYTES: u64 = 1_000_000_000;
const FASTEST_FILES: u64 = 100_000;
/// Limits of the time between two measurements. A measurement takes microseconds.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_INTERVAL: Duration = Duration::from_secs(1);

/// Why `wanted_bytes` more do not fit; `None` when they do. `keep_free` is the percentage of the
/// file system that must stay free afterwards.
pub fn shortage(space: Space, wanted_bytes: u64, keep_free: u8) -> Option<String> {
    if let Some(few) = few_inodes(space, keep_free) {
        return Some(few);
    }
    let Space { free_bytes, capacity_bytes, .. } = space;
    let reserved = part(capacity_bytes, keep_free);
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

/// The message when too few inodes are free: an image of many small files takes these up before the bytes.
/// Half the percentage of the bytes stays free, as of the kubelet's thresholds (5% of the inodes, 10
/// or 15% of the bytes) the one is half of the other or less.
fn few_inodes(space: Space, keep_free: u8) -> Option<String> {
    let Space { free_inodes, inodes, .. } = space;
    let keep_free = keep_free.div_ceil(2);
    let is_few = inodes > 0 && u128::from(free_inodes) < part(inodes, keep_free);
    is_few.then(|| {
        format!(
            "the image file system has {free_inodes} of {inodes} inodes free, and {keep_free}% has to \
             stay free"
        )
    })
}

/// How long a pull may go on until the space is measured again: the fastest one could just have used
/// up what may be used.
pub fn measure_again_in(space: Space, keep_free: u8) -> Duration {
    let above = |free: u64, all: u64, keep_free: u8| -> u64 {
        let above = u128::from(free).saturating_sub(part(all, keep_free));
        u64::try_from(above).unwrap_or(u64::MAX)
    };
    let milliseconds = |above: u64, fastest: u64| above / (fastest / 1000);
    let bytes = above(space.free_bytes, space.capacity_bytes, keep_free);
    let bytes = milliseconds(bytes, FASTEST_BYTES);
    let files = match space.inodes {
        0 => bytes,
        inodes => {
            let files = above(space.free_inodes, inodes, keep_free.div_ceil(2));
            milliseconds(files, FASTEST_FILES)
        }
    };
    Duration::from_millis(bytes.min(files)).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

/// So many per cent, rounded up.
fn part(of: u64, percent: u8) -> u128 {
    (u128::from(of) * u128::from(percent)).div_ceil(100)
}

/// The message when less than `keep_free` percent is free during a pull; `None` otherwise.
pub fn low(space: Space, keep_free: u8) -> Option<String> {
    shortage(space, 0, keep_free)?;
    if let Some(few) = few_inodes(space, keep_free) {
        return Some(format!("the image has many files, or others made them: {few}"));
    }
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

    fn bytes(free_bytes: u64, capacity_bytes: u64) -> Space {
        Space { free_bytes, capacity_bytes, free_inodes: 0, inodes: 0 }
    }

    #[test]
    fn inodes_count_as_well_as_bytes() {
        let space = |free_inodes, inodes| Space { free_inodes, inodes, ..bytes(MB, MB) };
        for (free, inodes, keep_free, fits) in
            [(100, 1_000, 20, true), (99, 1_000, 20, false), (0, 0, 20, true), (0, 1_000, 0, true)]
        {
            let space = space(free, inodes);
            assert_eq!(shortage(space, 0, keep_free).is_none(), fits, "{space:?}");
            assert_eq!(low(space, keep_free).is_none(), fits, "{space:?}");
        }
        assert_eq!(
            low(space(99, 1_000), 20).unwrap(),
            "the image has many files, or others made them: the image file system has 99 of 1000 \
             inodes free, and 10% has to stay free"
        );
    }

    #[test]
    fn the_less_is_left_the_sooner_it_is_measured_again() {
        let table = [
            // free and capacity in MB, free and all inodes, milliseconds
            (10_000, 10_000, 0, 0, 1_000),
            (2_500, 10_000, 0, 0, 500),
            (2_005, 10_000, 0, 0, 10),
            (1_000, 10_000, 0, 0, 10),
            (10_000, 10_000, 1_000_000, 1_000_000, 1_000),
            (10_000, 10_000, 120_000, 1_000_000, 200),
            (2_500, 10_000, 1_000_000, 1_000_000, 500),
            (10_000, 10_000, 1, 1_000_000, 10),
        ];
        for (free, capacity, free_inodes, inodes, expected) in table {
            let space = Space { free_inodes, inodes, ..bytes(free * MB, capacity * MB) };
            assert_eq!(measure_again_in(space, 20), Duration::from_millis(expected), "{space:?}");
        }
    }

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
            let space = bytes(free * MB, capacity * MB);
            let shortage = shortage(space, wanted * MB, keep_free);
            let row = format!("{free} of {capacity}, wanted {wanted}, reserved {keep_free}%");
            assert_eq!(shortage.is_none(), goes, "{row}: {shortage:?}");
        }
        let huge = bytes(u64::MAX, u64::MAX);
        assert_eq!(shortage(huge, 1, 99), None);
        assert!(shortage(huge, u64::MAX, 99).is_some());
    }

    #[test]
    fn a_disk_is_low_once_less_is_free_than_has_to_stay() {
        let space = |free| bytes(free * MB, 1_000 * MB);
        assert_eq!(low(space(150), 15), None);
        let message = low(space(149), 15).unwrap();
        assert!(
            message.ends_with("has 149 MB of 1000 MB free, and 15% has to stay free"),
            "{message}"
        );
    }

    #[test]
    fn a_shortage_is_stated_in_numbers() {
        let space = bytes(15_340_000, 128 * MB);
        insta::assert_snapshot!(
            shortage(space, 512 * MB, 15).unwrap(),
            @"the image file system has 15.3 MB of 128 MB free: the pull is taken to need 512 MB, and 15% (19.2 MB) has to stay free"
        );
    }
}
