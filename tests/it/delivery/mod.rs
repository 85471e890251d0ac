//! The whole relay, from an application's session to the hosts of its recipients: the real program, a name server and
//! sinks in this process, all on loopback.
//!
//! Every host listens on an address of its own and on one common port, `delivery.port`, as MX hosts do.

mod bounces;
mod content;
mod holding;
mod neighbours;
mod operator;
mod peer;
mod retries;
mod routing;
mod tls;
mod transactions;
mod trouble;
mod world;
