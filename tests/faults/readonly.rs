//! A spool folder that can only be read, as on a file system that is mounted so: a message, an exit code, and no mail lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use crate::library::{Fault, Lasts, Library, Seen};
use crate::support::PATIENCE;
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Moment, Sink};

/// What the system may say, and what the operator must be told.
const REFUSALS: [(Errno, [&str; 2]); 2] = [
    (Errno::EROFS, ["Read-only file system", "mount it for writing"]),
    (Errno::EACCES, ["Permission denied", "give the user that posthaste runs as this folder"]),
];

fn fault(errno: Errno) -> Fault {
    Fault { kind: "change", errno, lasts: Lasts::FromThenOn }
}

/// The relay must end with a failure, naming the folder and the remedy.
#[track_caller]
fn check_refused(relay: &mut Relay, words: &[&str]) {
    let status = relay.ended_within(PATIENCE).expect("it ends by itself");
    let said = relay.last_lines(20);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(Seen::read(relay.folder()).failed.is_some(), "nothing was refused");
    let folder = relay.folder().join("spool");
    for word in words.iter().copied().chain([folder.file_name().unwrap().to_str().unwrap()]) {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_spool_that_can_not_be_made_is_named_with_the_remedy() {
    let library = Library::build();
    for (errno, words) in REFUSALS {
        let setup = Setup::new();
        let variables = library.variables(setup.folder(), fault(errno), 1);
        check_refused(&mut setup.variables(variables).launch(), &words);
    }
}

#[test]
fn a_spool_that_can_only_be_read_is_named_and_its_mail_goes_out_when_it_can_be_written_again() {
    let library = Library::build();
    for (errno, words) in REFUSALS {
        let closed = Arc::new(AtomicBool::new(true));
        let door = Arc::clone(&closed);
        let sink = Sink::with(move |moment| match moment {
            Moment::Greeting if door.load(Ordering::SeqCst) => Manner::Say("421 4.3.2 not yet"),
            _ => Manner::Accept,
        });
        let mut relay = Setup::new().route("*", sink.address()).start();
        assert_eq!(relay.submit(&["b@x.test"], b"Subject: hello\r\n\r\nHello.\r\n").code, 250);
        relay.kill();
        relay.set_variables(library.variables(relay.folder(), fault(errno), 1));
        relay.restart();
        check_refused(&mut relay, &words);
        closed.store(false, Ordering::SeqCst);
        relay.set_variables(Vec::new());
        relay.restart();
        relay.await_ready();
        sink.await_mail_for("b@x.test");
    }
}
