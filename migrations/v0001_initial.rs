//! Format 1: the first one. There is nothing older to step up from.
//!
//! # Folder
//!
//! `db`, `conf`, `blobs/`, `snap.*`: sled 0.34, one default tree, segments of 512 KiB, no compression. `content/`: content
//! files, `<queue id>.<instance id>`, 32 lower-case hexadecimal digits each; raw content with CRLF line ends. `reserve`:
//! space set aside. `lock`: locked with `flock` while a program uses the folder. `api-token`: not part of the format.
//!
//! # Keys
//!
//! A prefix byte, then fields of fixed width, integers big endian. An id is 16 bytes. A destination is a domain in
//! lower-case A-labels or an address literal in brackets.
//!
//! | key | value |
//! |---|---|
//! | `mformat` | record 6 |
//! | `mstart` | record 7 |
//! | `mcounters` | record 5; missing means zeros |
//! | `e`, id, chunk u32 | chunk of kind 1 |
//! | `s`, id, number u16 | record 2; missing means fresh: queued, no attempts, due at arrival |
//! | `c`, id, chunk u32 | chunk of kind 3; none when the envelope names a file |
//! | `d`, destination, 00, due ms u64, id, number u16 | empty; one for each unsettled recipient of an indexed message |
//! | `w`, time ms u64, destination | empty; at least one for a destination with due keys |
//! | `t`, time ms u64, id | empty; one for each indexed message |
//! | `n`, destination | record 4 |
//! | `q`, the key a record had | that record's bytes, unchanged |
//! | `x`, id | record 8 |
//!
//! # Records
//!
//! At most 6,000 bytes: kind u8, version u8 (1), CRC-32 (ISO-HDLC) of kind, version and payload as u32 little endian,
//! payload. Payloads are made of, in the order given: u8, u16, u32, u64 little endian; bool (one byte, 0 or 1);
//! str (length u64, bytes of UTF-8); id (16 bytes); seq (count u64, elements); opt (00, or 01 and the value). Times are milliseconds since
//! the Unix epoch.
//!
//! | kind | payload |
//! |---|---|
//! | 1 envelope | reverse-path str (empty: null); body u8 (0 7BIT, 1 8BITMIME); arrived u64; origin u8 (0 SMTP, 1 embedding program, 2 the relay), peer str (`address:port`), helo str, extended bool; content size u64; content file str (empty: content is in the tree); seq of recipients: forward-path str, destination str (empty: the path's domain) |
//! | 2 state | status u8 (0 queued, 1 delivered, 2 bounced, 3 expired, 4 removed); attempts u32; due u64; delay notified bool; opt last |
//! | 3 content | the bytes |
//! | 4 destination | failures u32; no attempt before u64; opt last |
//! | 5 counters | messages u64; recipients u64; content bytes u64; messages in quarantine u64; content bytes in the tree u64; opt id: messages with lower ids have their due and deadline keys |
//! | 6 format | version u32; program version that wrote it str. The same in all formats |
//! | 7 start | number of starts u64; instance id of the last one str |
//! | 8 reason | str |
//!
//! last: time u64; opt host str; class u8 (0 accepted, 1 reply 4xx, 2 reply 5xx, 3 no host, 4 dns, 5 connect, 6 timeout,
//! 7 connection lost, 8 protocol, 9 tls, 10 auth, 11 loop, 12 expired, 13 crashed, 14 operator, 15 local); status 3 × u16;
//! opt reply: code u16, opt enhanced 3 × u16, text str; text str. Texts are cut to 512 bytes.
//!
//! # Chunks
//!
//! The payloads of kinds 1 and 3 are cut into pieces of 5,990 bytes, the last one shorter; an empty one makes one chunk.
//! Each piece is a record of its kind; in chunk 0 the length of the whole (u32 little endian) stands before the piece.

/// The version that this file describes.
pub const VERSION: u32 = 1;
