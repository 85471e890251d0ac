//! Content that was changed in its file since it was written.

use std::fs;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::*;
use crate::actors::delivery::content::{ContentSource, Loaded};
use crate::actors::delivery::{Drain, SpoolContent};
use crate::mail::envelope::{ContentPlace, Envelope};
use crate::mail::id::QueueId;
use crate::spool::SpoolError;
use crate::spool::content::ContentFiles;
use crate::spool::front::Front;
use crate::spool::memory::MemorySpool;

/// Bytes that a delivery reads at once.
const PIECE: usize = 256 << 10;

/// Every message has its content in this file.
struct OneFile {
    folder: tempfile::TempDir,
    spool: SpoolContent,
    name: String,
    size: u64,
}

impl OneFile {
    fn new(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = ContentFiles::new(folder.path().to_owned());
        let id = QueueId::from_bytes([7; 16]);
        let (name, size) = files.create(id, "run1").unwrap().finish_with(content).unwrap();
        let front = Front::threaded(Arc::new(MemorySpool::new()), Some(files), 1, 1).unwrap();
        Self { folder, spool: SpoolContent::new(front), name, size }
    }

    fn flip(&self, at: usize) {
        let path = self.folder.path().join(&self.name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

impl ContentSource for OneFile {
    fn load(&self, envelope: Arc<Envelope>) -> BoxFuture<'static, Result<Loaded, SpoolError>> {
        let place = ContentPlace::File(self.name.clone());
        self.spool.load(Arc::new(Envelope { size: self.size, place, ..Envelope::clone(&envelope) }))
    }
}

/// One long line in each piece.
fn content(pieces: usize) -> Vec<u8> {
    let mut piece = vec![b'x'; PIECE];
    piece[PIECE - 2..].copy_from_slice(b"\r\n");
    piece.repeat(pieces)
}

async fn bench(peer: &Peer, source: Arc<OneFile>) -> Bench {
    let mut bench = Bench::with(&[peer.address], Plan { content: Some(source), ..Plan::default() });
    bench.content = None;
    bench
}

#[actix_rt::test]
async fn content_of_a_file_that_is_whole_is_sent_to_its_end() {
    for pieces in [1, 3] {
        let mut peer = Peer::new(&[&script(&[HELLO, TAKE, "eof"])]).await;
        let mut bench = bench(&peer, Arc::new(OneFile::new(&content(pieces)))).await;
        assert_eq!(bench.deliver().await, DELIVERED);
        assert!(peer.contents.recv().await.unwrap() == content(pieces));
    }
}

#[actix_rt::test]
async fn content_with_a_changed_byte_never_gets_a_final_dot() {
    // Of the first piece, of the last one, of the checksum.
    for at in [9, 2 * PIECE - 1, 2 * PIECE + 11] {
        let data = "C: MAIL\nC: RCPT\nC: DATA\nS: 250 ok|250 ok|354 go\nC: xxx\neof";
        let peer = Peer::new(&[&script(&[HELLO, data])]).await;
        let file = Arc::new(OneFile::new(&content(2)));
        file.flip(at);
        let mut bench = bench(&peer, file).await;
        // The Queue sets its message aside.
        assert_eq!(bench.deliver().await, "damaged local 4.3.0 → untouched", "byte {at}");
        peer.finish().await;
    }
}

#[actix_rt::test]
async fn content_of_one_piece_with_a_changed_byte_is_not_begun() {
    for at in [9, PIECE - 1, PIECE, PIECE + 11] {
        let peer = Peer::new(&[&script(&[HELLO, BYE])]).await;
        let file = Arc::new(OneFile::new(&content(1)));
        file.flip(at);
        let mut bench = bench(&peer, file).await;
        assert_eq!(bench.deliver().await, "damaged local 4.3.0 → untouched", "byte {at}");
        bench.delivery.do_send(Drain);
        peer.finish().await;
    }
}
