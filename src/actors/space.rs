//! The watch over the spool's room: closes the door for new mail when the disk gets full, and opens it again.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::admin::Health;
use crate::metrics::Metrics;
use crate::spool::front::Front;
use crate::spool::space::{self, Bounds, Room, Shortage, Space};
use crate::spool::{Counters, Spool, SpoolError};

/// How often it looks. Between two looks mail may take what `spool.min_free` leaves for that.
const EVERY: Duration = Duration::from_millis(100);
/// After a compaction so many looks (a minute) pass before another one,
const LOOKS_BETWEEN_COMPACTIONS: u32 = 600;
/// and after one that failed so many (ten seconds).
const LOOKS_AFTER_A_FAILURE: u32 = 100;

/// What the watch needs.
pub struct SpaceWatch {
    /// The spool's threads.
    pub front: Front,
    /// The spool's folder.
    pub folder: PathBuf,
    /// The bounds.
    pub bounds: Bounds,
    /// Told whether there is room.
    pub room: Arc<Room>,
    /// What `/readyz` says.
    pub health: Arc<Health>,
    /// Where free bytes are shown.
    pub metrics: Arc<Metrics>,
    /// Looks to go before a compaction may be worth it again; 0 at first.
    pub rest: Cell<u32>,
}

impl SpaceWatch {
    /// Looks again and again, until it is dropped or the spool's threads are gone.
    pub async fn run(self) {
        while self.look().await {
            tokio::time::sleep(EVERY).await;
        }
    }

    /// One look; `false` when there is nobody to ask any more.
    pub async fn look(&self) -> bool {
        let (folder, bounds) = (self.folder.clone(), self.bounds);
        let looked = self.front.read_async(move |spool| {
            let looked = look(spool, &folder, &bounds);
            // Not before: that may be what can't be read.
            (looked, spool.damage())
        });
        let Some((looked, damage)) = looked.await else { return false };
        self.tell_damage(damage);
        match looked {
            Ok((space, held)) => {
                self.tell(&space, &held);
                self.compact(&space, &held).await;
            }
            Err(error) => tracing::warn!(%error, "can't tell how much room the spool has"),
        }
        true
    }

    /// Gives room back that removed mail left in the database, where that is quick and of use.
    async fn compact(&self, space: &Space, held: &Counters) {
        if let Some(rest) = self.rest.get().checked_sub(1) {
            return self.rest.set(rest);
        }
        let Some(most) = space.worth_compacting(held, self.room.is_short()) else { return };
        let compacted = self.front.read_async(move |spool| spool.compact(most)).await;
        let failed = matches!(&compacted, Some(Err(_)));
        self.rest.set(if failed { LOOKS_AFTER_A_FAILURE } else { LOOKS_BETWEEN_COMPACTIONS });
        if let Some(Err(error)) = compacted {
            tracing::warn!(%error, "the database can't be compacted");
        }
    }

    fn tell_damage(&self, damage: Option<String>) {
        let Some(why) = damage.filter(|_| !self.health.has(Health::DAMAGE)) else { return };
        self.metrics.damaged_records.inc();
        tracing::error!(%why, "a part of the database can't be read; the rest goes on");
        self.health.set(Health::DAMAGE, Some(why));
    }

    fn tell(&self, space: &Space, held: &Counters) {
        self.metrics.spool_free_bytes.set(space.free as f64);
        self.metrics.spool_usable_bytes.set(space.usable(held) as f64);
        let was_short = self.room.is_short();
        let met_full = self.room.met_full().then_some(Shortage::Full);
        let shortage = self.bounds.shortage(space, held, was_short).or(met_full);
        self.room.set_short(shortage.is_some());
        self.metrics.spool_short.set(i64::from(shortage.is_some()));
        match &shortage {
            Some(why) if !was_short => tracing::error!(%why, "no new mail is taken; delivery goes on"),
            None if was_short => tracing::info!("the spool has room again: new mail is taken"),
            _ => {}
        }
        self.health.set(Health::SPACE, shortage.map(|why| why.to_string()));
    }
}

fn look(spool: &dyn Spool, folder: &Path, bounds: &Bounds) -> Result<(Space, Counters), SpoolError> {
    let failed = |what: &str| {
        let (path, what) = (folder.to_owned(), what.to_owned());
        move |source| SpoolError::Io { path, what, source }
    };
    space::set_aside(folder, bounds).map_err(failed("the reserve can't be set aside"))?;
    let space = Space::look(folder).map_err(failed("its free space can't be told"))?;
    Ok((space, spool.counters()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::memory::MemorySpool;

    #[actix_rt::test]
    async fn a_full_disk_that_content_met_shows_and_is_forgotten_after_a_while() {
        let folder = tempfile::tempdir().expect("a folder");
        let watch = SpaceWatch {
            front: Front::inline(Arc::new(MemorySpool::new())),
            folder: folder.path().to_owned(),
            bounds: Bounds { free: 0, inodes: 0, reserve: 0 },
            room: Arc::default(),
            health: Arc::new(Health::new()),
            metrics: Metrics::new().expect("good metrics"),
            rest: Cell::default(),
        };
        watch.health.set(Health::STARTING, None);
        assert!(watch.look().await && watch.health.ready().is_ok());
        watch.room.note_full();
        let mut looks = 0;
        while watch.look().await && watch.room.is_short() {
            looks += 1;
            let reasons = watch.health.ready().expect_err("not ready");
            assert!(reasons[0].contains("disk was full"), "{reasons:?}");
        }
        assert_eq!(looks, 100, "10 s");
        assert!(watch.health.ready().is_ok());
    }
}
