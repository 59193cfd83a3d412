//! Keeps the pins of the node as `runtime::pins` of the core decides: when something else is wanted, and when the
//! image file system gets full. The state is on the images themselves, so that nothing is lost with the process,
//! and pins that are no longer wanted go whoever of the warmers has set them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::disk::DiskGuard;
use super::metrics::PinMetrics;
use crate::clock::unix_ms;
use crate::runtime::Runtime;
use imagewarm_core::node_queue::space::measure_again_in;
use imagewarm_core::runtime::pins::{HeldImage, PinSettings, Wanted, plan};
use imagewarm_core::runtime::{RuntimeError, Space};

/// Interval of comparisons while the disk is full.
const FULL_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// For all requests of one comparison.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// The kubelet collects images every five minutes. After that, what is not pinned has not sufficed.
const OVERDUE: Duration = Duration::from_secs(6 * 60);

/// The pins of the runtime that is in use.
pub(super) struct Pins {
    settings: PinSettings,
    /// Interval of comparisons with the runtime without any known change: a pull may have replaced labels.
    interval: Duration,
    disk: Arc<DiskGuard>,
    metrics: PinMetrics,
    wanted: watch::Sender<Wanted>,
    keeper: JoinSet<()>,
}

impl Pins {
    pub(super) fn new(
        settings: PinSettings,
        interval: Duration,
        disk: Arc<DiskGuard>,
        metrics: PinMetrics,
    ) -> Self {
        let wanted = watch::Sender::new(Wanted::default());
        Pins { settings, interval, disk, metrics, wanted, keeper: JoinSet::new() }
    }

    /// From now on keeps the pins of this runtime, and of no other.
    pub(super) fn keep_in(&mut self, runtime: Arc<dyn Runtime>) {
        self.keeper = JoinSet::new();
        if runtime.usable().is_ok() {
            let keeper = Keeper {
                runtime,
                settings: self.settings,
                interval: self.interval,
                disk: self.disk.clone(),
                metrics: self.metrics.clone(),
                full_since: None,
            };
            self.keeper.spawn(keeper.run(self.wanted.subscribe()));
        }
    }

    /// What is wanted now; not asked for where nothing is pinned.
    pub(super) fn want(&self, wanted: impl FnOnce() -> Wanted) {
        if self.settings.is_on() {
            let wanted = wanted();
            self.wanted.send_if_modified(|before| {
                let changed = *before != wanted;
                *before = wanted;
                changed
            });
        }
    }
}

/// Whether pins need further attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// As they should be, for now.
    Yes,
    /// Nothing can be pinned here, or nothing is to be and nothing is.
    Done,
}

struct Keeper {
    runtime: Arc<dyn Runtime>,
    settings: PinSettings,
    interval: Duration,
    disk: Arc<DiskGuard>,
    metrics: PinMetrics,
    /// Since when the kubelet has had to free the disk.
    full_since: Option<Instant>,
}

impl Keeper {
    async fn run(mut self, mut wanted: watch::Receiver<Wanted>) {
        let mut next = Instant::now();
        loop {
            let space = self.space().await;
            let has_changed = wanted.has_changed().unwrap_or(false);
            if has_changed || self.full_since.is_some() || Instant::now() >= next {
                let now_wanted = wanted.borrow_and_update().clone();
                let compared = self.compare(&now_wanted, space);
                next = Instant::now();
                next += match tokio::time::timeout(COMPARE_TIMEOUT, compared).await {
                    Ok(Ok(Kept::Done)) => return,
                    Ok(Ok(Kept::Yes)) => self.interval,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "pins not compared, retrying");
                        RETRY_INTERVAL
                    }
                    Err(_) => RETRY_INTERVAL,
                };
            }
            sleep(self.until_next(space)).await;
        }
    }

    /// Until the space is measured again: the sooner the less is left, since a kubelet evicts Pods from a disk that
    /// is full.
    fn until_next(&self, space: Option<Space>) -> Duration {
        match space {
            Some(space) if self.full_since.is_none() => {
                measure_again_in(space, self.settings.full_below_free())
            }
            _ => FULL_INTERVAL,
        }
    }

    async fn space(&mut self) -> Option<Space> {
        if !self.settings.is_on() {
            return None;
        }
        let space = self.disk.space(self.runtime.as_ref()).await;
        let is_full = space.is_some_and(|space| self.settings.is_full(space));
        self.full_since = is_full.then(|| self.full_since.unwrap_or_else(Instant::now));
        space
    }

    async fn compare(
        &mut self,
        wanted: &Wanted,
        space: Option<Space>,
    ) -> Result<Kept, RuntimeError> {
        let Some(held) = self.runtime.held_images().await? else {
            if self.settings.is_on() {
                tracing::warn!(
                    "images are not pinned: only containerd 2 and later can do that; for CRI-O and \
                     cri-dockerd `imagewarm pins` prints the settings"
                );
            }
            return Ok(Kept::Done);
        };
        let is_overdue = self.full_since.is_some_and(|since| since.elapsed() >= OVERDUE);
        if is_overdue {
            // What goes now has a collection's time, too.
            self.full_since = Some(Instant::now());
        }
        let plan = plan(&self.settings, &held, wanted, space, is_overdue);
        for &(image, why) in &plan.unpin {
            self.runtime.set_pin(&image.id, None).await?;
            tracing::info!(image = name(image), reason = why.as_str(), "image unpinned");
        }
        for &image in &plan.pin {
            self.runtime.set_pin(&image.id, Some(unix_ms())).await?;
            tracing::info!(image = name(image), bytes = image.size_bytes, "image pinned");
        }
        self.metrics.show(plan.pinned, plan.pinned_bytes, plan.without_room);
        Ok(if self.settings.is_on() { Kept::Yes } else { Kept::Done })
    }
}

fn name(image: &HeldImage) -> &str {
    image.names.first().unwrap_or(&image.id)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::runtime::Withheld;
    use crate::runtime::fake::FakeRuntime;
    use imagewarm_core::image::Reference;
    use imagewarm_core::runtime::pins::{Pin, WantedImage};

    const APP: &str = "r.test/app:v1";

    fn image(id: &str, name: &str, pin: Pin) -> HeldImage {
        HeldImage { id: id.into(), names: vec![name.into()], size_bytes: 1, in_use: false, pin }
    }

    fn pins(share: u8) -> Pins {
        let settings = PinSettings::new(share, 99, 98).unwrap();
        const GIB: u64 = 1 << 30;
        let (free_inodes, inodes) = (1_000, 2_000);
        let space = Space { free_bytes: 20 * GIB, capacity_bytes: 100 * GIB, free_inodes, inodes };
        let disk = DiskGuard::with_measure(0, Some("/".into()), Box::new(move |_| Ok(space)));
        Pins::new(settings, Duration::from_secs(1), Arc::new(disk), PinMetrics::default())
    }

    fn wanting(names: &[&str]) -> Wanted {
        let images = names.iter().map(|name| WantedImage {
            names: vec![Reference::parse(name).unwrap()],
            priority: 1,
            is_warm: true,
        });
        Wanted { images: images.collect(), is_complete: true }
    }

    async fn until(runtime: &FakeRuntime, id: &str, pinned: bool) {
        let changed = async {
            while runtime.is_pinned(id) != pinned {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), changed).await.unwrap();
    }

    #[tokio::test]
    async fn an_image_is_pinned_while_it_is_wanted_and_again_when_its_pin_is_lost() {
        let runtime = FakeRuntime::default().holding([image("app", APP, Pin::None)]);
        let mut pins = pins(30);
        pins.keep_in(Arc::new(runtime.clone()));
        pins.want(|| wanting(&[APP]));
        until(&runtime, "app", true).await;
        runtime.set_pin("app", None).await.unwrap();
        until(&runtime, "app", true).await;
        pins.want(|| wanting(&[]));
        until(&runtime, "app", false).await;
    }

    #[tokio::test]
    async fn switched_off_the_pins_of_the_run_before_are_removed_and_those_of_others_stay() {
        let own = Pin::Own { since_unix_ms: 1, in_effect: true };
        let images = [image("app", APP, own), image("pause", "r.test/pause:v1", Pin::Foreign)];
        let runtime = FakeRuntime::default().holding(images);
        let mut pins = pins(0);
        pins.keep_in(Arc::new(Withheld::undecided()));
        assert!(pins.keeper.is_empty());
        pins.keep_in(Arc::new(runtime.clone()));
        pins.want(|| unreachable!("it does not matter"));
        pins.keeper.join_next().await.unwrap().unwrap();
        assert!(!runtime.is_pinned("app") && runtime.is_pinned("pause"));
    }

    #[tokio::test]
    async fn a_runtime_that_cannot_pin_is_left_alone() {
        let mut pins = pins(30);
        pins.keep_in(Arc::new(FakeRuntime::default()));
        pins.keeper.join_next().await.unwrap().unwrap();
    }
}
