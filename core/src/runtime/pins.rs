//! Which images a node pins, so that the kubelet's image garbage collection keeps them: what is wanted here, the
//! newest first, within a share of the image file system. Pins hold only while the kubelet can free the disk
//! without them. Pure; sizes are in bytes, as the runtime counts them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::{RuntimeVersion, Space};
use crate::image::Reference;

/// containerd counts the packed layers. The unpacked ones are on the disk beside them, usually about twice as
/// large.
const DISK_PER_SIZE: u64 = 3;
/// The kubelet evicts Pods when less than this percentage of the inodes is free, unless set otherwise.
const FEWEST_INODES: u128 = 5;

/// Whether this runtime reports to the kubelet that images with containerd's label are pinned. 1.6 ignores the label,
/// 1.7 has not been tried.
pub fn honours_pins(runtime: &RuntimeVersion) -> bool {
    let major = runtime.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    runtime.name == "containerd" && major.is_some_and(|major| major >= 2)
}

/// The node's settings of pins; all are whole percentages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinSettings {
    share: u8,
    high_threshold: u8,
    low_threshold: u8,
}

/// The kubelet rejects such thresholds, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--image-gc-low-threshold {low}% is not below --image-gc-high-threshold {high}%: set both as the kubelet has \
     them"
)]
pub struct ThresholdsError {
    high: u8,
    low: u8,
}

impl PinSettings {
    /// Pins take up to `share` of the image file system; 0 pins nothing. The thresholds are the kubelet's, in
    /// percent of the file system that is used.
    pub fn new(share: u8, high: u8, low: u8) -> Result<Self, ThresholdsError> {
        match low < high {
            true => Ok(PinSettings { share, high_threshold: high, low_threshold: low }),
            false => Err(ThresholdsError { high, low }),
        }
    }

    /// Whether anything may be pinned.
    pub fn is_on(&self) -> bool {
        self.share > 0
    }

    /// Whether the kubelet collects images now.
    pub fn is_full(&self, space: Space) -> bool {
        used_percent(space) >= self.high_threshold.into() || has_few_inodes(space)
    }

    /// The percentage of the file system at which it counts as full, if less is free.
    pub fn full_below_free(&self) -> u8 {
        101 - self.high_threshold
    }

    /// What all pinned images may take up together.
    fn bound(&self, space: Space) -> u64 {
        percent_of(space.capacity_bytes, self.share)
    }

    /// What a collection has to free, as the kubelet computes it.
    fn collection_goal(&self, space: Space) -> u64 {
        match self.is_full(space) {
            // How many inodes an image has is not known.
            true if has_few_inodes(space) => u64::MAX,
            true => {
                let free = percent_of(space.capacity_bytes, 100 - self.low_threshold);
                free.saturating_sub(space.free_bytes)
            }
            false => 0,
        }
    }
}

/// The percentage of a file system that is used, as the kubelet rounds it.
fn used_percent(space: Space) -> u64 {
    let Space { free_bytes, capacity_bytes, .. } = space;
    let free = (u128::from(free_bytes) * 100).checked_div(capacity_bytes.into()).unwrap_or(100);
    100 - u64::try_from(free.min(100)).unwrap_or(100)
}

fn has_few_inodes(space: Space) -> bool {
    u128::from(space.free_inodes) * 100 < u128::from(space.inodes) * FEWEST_INODES
}

fn percent_of(bytes: u64, percent: u8) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

/// The pin of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The kubelet may remove the image.
    None,
    /// Set by a warmer.
    Own {
        /// When, in milliseconds since 1970.
        since_unix_ms: i64,
        /// Whether the runtime reports the image as pinned.
        in_effect: bool,
    },
    /// Set by somebody else: the runtime's configuration, an administrator.
    Foreign,
}

/// An image that the runtime holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldImage {
    /// The runtime's ID.
    pub id: String,
    /// Its names in canonical form, by tag and by digest.
    pub names: Vec<String>,
    /// Its size.
    pub size_bytes: u64,
    /// Whether a container uses it, running or not: the kubelet does not remove it then.
    pub in_use: bool,
    /// Its pin.
    pub pin: Pin,
}

impl HeldImage {
    fn is_own(&self) -> bool {
        matches!(self.pin, Pin::Own { .. })
    }

    /// What a collection frees with it, by the kubelet's count.
    fn collectable(&self) -> u64 {
        if self.in_use { 0 } else { self.size_bytes }
    }
}

/// An image that is wanted on the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedImage {
    /// Its names; of several that the runtime holds, the first counts.
    pub names: Vec<Reference>,
    /// When the newest Revision that uses it was created, in seconds since 1970; 0 for none.
    pub priority: i64,
    /// Whether the node was found to hold it.
    pub is_warm: bool,
}

/// All that is wanted on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The images.
    pub images: Vec<WantedImage>,
    /// False until the controller has listed all of them: more may be wanted.
    pub is_complete: bool,
}

/// Why an image is unpinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpin {
    /// Pinning is off.
    Off,
    /// The space of the image file system is not known.
    SpaceUnknown,
    /// Nobody wants the image on this node any more.
    NotWanted,
    /// Images that were used more recently take up the share.
    ShareUsedUp,
    /// The kubelet has to free the disk, and cannot without this image.
    DiskFull,
}

impl Unpin {
    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Unpin::Off => "pinning is off",
            Unpin::SpaceUnknown => "the space of the image file system is not known",
            Unpin::NotWanted => "no longer wanted on this node",
            Unpin::ShareUsedUp => "newer images take up the share of pinned images",
            Unpin::DiskFull => "the image file system is full",
        }
    }
}

/// What to change, and what is pinned after that.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PinPlan<'a> {
    /// To be unpinned, before others are pinned.
    pub unpin: Vec<(&'a HeldImage, Unpin)>,
    /// To be pinned.
    pub pin: Vec<&'a HeldImage>,
    /// Images that are pinned by a warmer then.
    pub pinned: usize,
    /// Their sizes together.
    pub pinned_bytes: u64,
    /// Warm images that are not pinned for want of room.
    pub without_room: usize,
}

/// Decides on the pins. `space` is that of the image file system, if known. `is_overdue`: it has been full for so
/// long that what is not pinned evidently does not suffice.
pub fn plan<'a>(
    settings: &PinSettings,
    held: &'a [HeldImage],
    wanted: &Wanted,
    space: Option<Space>,
    is_overdue: bool,
) -> PinPlan<'a> {
    let unpin_all = |why| PinPlan {
        unpin: held.iter().filter(|image| image.is_own()).map(|image| (image, why)).collect(),
        ..PinPlan::default()
    };
    if !settings.is_on() {
        return unpin_all(Unpin::Off);
    }
    let Some(space) = space else { return unpin_all(Unpin::SpaceUnknown) };
    let candidates = candidates(held, wanted);
    let mut reasons: HashMap<&str, Unpin> = HashMap::new();
    let (mut room, mut kept, mut without_room) = (settings.bound(space), Vec::new(), 0);
    // Between the thresholds pins stay, but none is added: a disk that has just been freed would fill up with them.
    let may_add = used_percent(space) < settings.low_threshold.into() && !has_few_inodes(space);
    for image in candidates {
        let needed = image.size_bytes.saturating_mul(DISK_PER_SIZE);
        if needed <= room && (may_add || image.is_own()) {
            room -= needed;
            kept.push(image);
        } else {
            without_room += 1;
            reasons.insert(&image.id, Unpin::ShareUsedUp);
        }
    }
    let missing = still_to_be_freed(settings, held, &kept, space, is_overdue);
    for image in release(&mut kept, missing) {
        without_room += 1;
        reasons.insert(&image.id, Unpin::DiskFull);
    }
    let stays = |image: &HeldImage| kept.iter().any(|kept| kept.id == image.id);
    let reason = |image: &HeldImage| *reasons.get(image.id.as_str()).unwrap_or(&Unpin::NotWanted);
    let gone = held.iter().filter(|image| image.is_own() && !stays(image));
    PinPlan {
        unpin: gone.map(|image| (image, reason(image))).collect(),
        pinned: kept.len(),
        pinned_bytes: kept.iter().fold(0, |sum, image| sum.saturating_add(image.size_bytes)),
        without_room,
        pin: kept
            .into_iter()
            .filter(|image| !matches!(image.pin, Pin::Own { in_effect: true, .. }))
            .collect(),
    }
}

/// What may be pinned, in the order in which it is kept: of the newest Revision first, and of one Revision what
/// is pinned before what is not, and the newest pin first.
fn candidates<'a>(held: &'a [HeldImage], wanted: &Wanted) -> Vec<&'a HeldImage> {
    let names = held
        .iter()
        .enumerate()
        .flat_map(|(at, image)| image.names.iter().map(move |name| (name.as_str(), at)));
    let by_name: HashMap<&str, usize> = names.collect();
    let mut priorities: BTreeMap<usize, i64> = BTreeMap::new();
    for image in &wanted.images {
        let found = image.names.iter().find_map(|name| by_name.get(name.as_str()));
        if let Some(&at) = found
            && (held[at].is_own() || (image.is_warm && held[at].pin == Pin::None))
        {
            let priority = priorities.entry(at).or_insert(image.priority);
            *priority = image.priority.max(*priority);
        }
    }
    if !wanted.is_complete {
        let own = held.iter().enumerate().filter(|(_, image)| image.is_own());
        own.for_each(|(at, _)| {
            priorities.entry(at).or_insert(i64::MIN);
        });
    }
    let mut candidates: Vec<(i64, &HeldImage)> =
        priorities.into_iter().map(|(at, priority)| (priority, &held[at])).collect();
    candidates.sort_by_cached_key(|(priority, image)| {
        let since = match image.pin {
            Pin::Own { since_unix_ms, .. } => Some(since_unix_ms),
            Pin::None | Pin::Foreign => None,
        };
        Reverse((*priority, since, image.id.clone()))
    });
    candidates.into_iter().map(|(_, image)| image).collect()
}

/// What the kubelet cannot free without the pinned images.
fn still_to_be_freed(
    settings: &PinSettings,
    held: &[HeldImage],
    kept: &[&HeldImage],
    space: Space,
    is_overdue: bool,
) -> u64 {
    let needed = settings.collection_goal(space);
    if needed == 0 || is_overdue {
        return needed;
    }
    let is_kept = |image: &HeldImage| kept.iter().any(|kept| kept.id == image.id);
    let others = held.iter().filter(|image| image.pin != Pin::Foreign && !is_kept(image));
    needed.saturating_sub(others.map(HeldImage::collectable).fold(0, u64::saturating_add))
}

/// Takes the oldest pins away until they free so much. Images in use free nothing and stay.
fn release<'a>(kept: &mut Vec<&'a HeldImage>, mut bytes: u64) -> Vec<&'a HeldImage> {
    let mut released = Vec::new();
    for at in (0..kept.len()).rev() {
        if bytes == 0 {
            break;
        }
        if !kept[at].in_use {
            let image = kept.remove(at);
            bytes = bytes.saturating_sub(image.size_bytes);
            released.push(image);
        }
    }
    released
}

#[cfg(test)]
mod tests;
