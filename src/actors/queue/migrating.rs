//! The migration of an older spool: one step in each commit until nothing is left to carry over.

use actix::{Context, Handler, Message};

use super::Queue;
use crate::spool::{self, SpoolError};

/// Where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Migration {
    /// Not known: the spool is to be asked.
    #[default]
    Unknown,
    /// The spool is being asked.
    Asked,
    /// The next commit, or the one under way, carries a step; then the spool is asked again.
    Stepping,
    /// Nothing is left to carry over.
    Done,
}

/// Spool → Queue: what is left.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct MigrationRead {
    left: Result<Option<spool::Migration>, SpoolError>,
}

impl Queue {
    /// Asks whether there is something to carry over.
    pub(super) fn migrate(&mut self) {
        if self.migration != Migration::Unknown || self.draining || self.failed {
            return;
        }
        let Some(me) = self.me() else { return };
        self.migration = Migration::Asked;
        self.parts.front.read(|spool| spool.migration(), move |left| me.do_send(MigrationRead { left }));
    }

    fn migration_read(&mut self, read: MigrationRead) {
        self.migration = match read.left {
            Ok(Some(_)) => {
                self.open.migrate = true;
                Migration::Stepping
            }
            Ok(None) => Migration::Done,
            Err(error) => {
                // The next start goes on; readers understand what is left.
                self.damaged(&error);
                Migration::Done
            }
        };
    }
}

impl Handler<MigrationRead> for Queue {
    type Result = ();

    fn handle(&mut self, read: MigrationRead, ctx: &mut Context<Self>) {
        self.migration_read(read);
        self.turn(ctx);
    }
}
