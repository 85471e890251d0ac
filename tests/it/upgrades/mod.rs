//! Spools of every released format are taken over by this program, and their mail is delivered.

mod fixture;

use self::fixture::Ended;

#[test]
fn a_spool_that_this_program_left_is_taken_over() {
    for ended in [Ended::Cleanly, Ended::Killed] {
        drop(fixture::make(ended));
    }
}
