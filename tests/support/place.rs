//! Addresses that nobody else uses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// A loopback address of its own for each caller.
///
/// A relay that is killed and started again must find its port free. On 127.0.0.1 an outgoing connection may have been
/// given that port in between, or a client that keeps dialling a dead port is connected to itself; outgoing loopback
/// connections always leave from 127.0.0.1, so neither happens on another address of 127.0.0.0/8.
pub fn own_address() -> IpAddr {
    let process = std::process::id() % (64 * 254);
    let number = TAKEN.fetch_add(1, Ordering::Relaxed) % 254;
    let parts = [64 + process / 254, 1 + process % 254, 1 + number];
    let [b, c, d] = parts.map(|part| u8::try_from(part).expect("below 256"));
    IpAddr::V4(Ipv4Addr::new(127, b, c, d))
}

/// An address of its own with a port that the system picked, free to bind.
pub fn free_place() -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).expect("a loopback port");
    listener.local_addr().expect("a bound socket has an address")
}
