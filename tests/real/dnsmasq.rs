//! `dnsmasq` as the relay's name server: MX by preference, hosts that are down, A and AAAA without MX, null MX, names that
//! don't exist, and a name server that is not there.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::peer::{self, Running};
use crate::support::relay::{Relay, Setup};
use crate::support::sink::{Manner, Sink};
use crate::support::{PATIENCE, place, wait_until};

const LETTER: &[u8] = b"From: me@sender.test\r\nSubject: by MX\r\n\r\nhello\r\n";

/// A running name server.
struct NameServer {
    address: SocketAddr,
    _process: Running,
}

impl NameServer {
    /// Serves the records, given as dnsmasq's options, and nothing else: all of `.test` is its own.
    fn start(address: SocketAddr, records: &[String]) -> Self {
        let log = std::fs::File::create("/dev/null").unwrap();
        let process = Command::new(peer::find("dnsmasq"))
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--pid-file=",
            ])
            .args(["--bind-interfaces", "--except-interface=none", "--local=/test/", "--user=", "--group="])
            .arg(format!("--listen-address={}", address.ip()))
            .arg(format!("--port={}", address.port()))
            .args(records)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { address, _process: Running(process) };
        wait_until("dnsmasq", PATIENCE, || server.answers());
        server
    }

    /// Asks for the A record of `x.test`; any answer will do.
    fn answers(&self) -> bool {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01x\x04test\0\0\x01\0\x01";
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.send_to(query, self.address).is_ok_and(|_| socket.recv(&mut [0; 512]).is_ok())
    }
}

/// Three mail hosts at addresses of their own, with one port as mail hosts have; the third one is not there.
struct Hosts {
    first: Sink,
    second: Sink,
    dead: IpAddr,
    port: u16,
}

impl Hosts {
    fn start() -> Self {
        let first = Sink::friendly();
        let port = first.address().port();
        let second = Sink::start((place::own_address(), port).into(), true, |_| Manner::Accept);
        Self { first, second, dead: place::own_address(), port }
    }

    fn records(&self) -> Vec<String> {
        let (first, second) = (self.first.address().ip(), self.second.address().ip());
        [
            format!("--host-record=mx1.test,{first}"),
            format!("--host-record=mx2.test,{second}"),
            format!("--host-record=dead.test,{}", self.dead),
            "--mx-host=sender.test,mx2.test,10".to_owned(),
            "--mx-host=ordered.test,mx1.test,10".to_owned(),
            "--mx-host=ordered.test,mx2.test,20".to_owned(),
            "--mx-host=failover.test,dead.test,5".to_owned(),
            "--mx-host=failover.test,mx2.test,50".to_owned(),
            format!("--host-record=plain.test,{first}"),
            format!("--host-record=alias-target.test,{first}"),
            "--cname=alias.test,alias-target.test".to_owned(),
            "--host-record=six.test,::1".to_owned(),
            // Preference 0 and the root as host: null MX (RFC 7505).
            "--dns-rr=null.test,15,000000".to_owned(),
            format!("--host-record=null.test,{first}"),
        ]
        .into()
    }

    fn relay(&self, names: SocketAddr) -> Relay {
        Setup::new()
            .set("dns.servers", &format!("[\"{names}\"]"))
            .set("dns.timeout", "\"1s\"")
            .set("delivery.port", &self.port.to_string())
            .start()
    }
}

/// All of it, running.
fn world() -> (Hosts, NameServer, Relay) {
    let hosts = Hosts::start();
    let names = NameServer::start(place::free_place(), &hosts.records());
    let relay = hosts.relay(names.address);
    (hosts, names, relay)
}

#[track_caller]
fn accept(relay: &Relay, path: &str) {
    let to = [path.to_owned()];
    let wire = crate::support::smtp::stuffed(LETTER);
    assert_eq!(relay.client().mail("me@sender.test", &to, &wire).unwrap().code, 250);
}

/// The report that comes back to the sender must name the recipient, and say each of `words`.
#[track_caller]
fn check_report(path: &str, words: &[&str]) {
    let (hosts, _names, relay) = world();
    accept(&relay, path);
    let report = hosts.second.await_mail_for("me@sender.test");
    assert_eq!(report.from, "", "a report has the null reverse-path");
    let text = report.text();
    for word in ["multipart/report", "Action: failed", &format!("rfc822;{path}")].iter().chain(words) {
        let squeezed = text.replace("rfc822; ", "rfc822;");
        assert!(squeezed.contains(word), "\"{word}\" is not in\n{text}");
    }
    assert!(hosts.first.read(<[_]>::is_empty), "the mail itself must not be tried");
}

#[test]
fn mail_goes_to_the_preferred_host() {
    let (hosts, _names, relay) = world();
    accept(&relay, "you@ordered.test");
    hosts.first.await_mail_for("you@ordered.test");
    assert!(hosts.second.read(<[_]>::is_empty));
}

#[test]
fn mail_goes_to_the_next_host_when_the_first_is_down() {
    let (hosts, _names, relay) = world();
    accept(&relay, "you@failover.test");
    hosts.second.await_mail_for("you@failover.test");
}

#[test]
fn a_domain_without_mx_gets_mail_at_its_own_address() {
    let (hosts, _names, relay) = world();
    accept(&relay, "you@plain.test");
    accept(&relay, "you@alias.test");
    hosts.first.await_mail_for("you@plain.test");
    hosts.first.await_mail_for("you@alias.test");
}

#[test]
fn a_host_with_only_ipv6_is_reached() {
    let (hosts, _names, relay) = world();
    let at = SocketAddr::from((Ipv6Addr::LOCALHOST, hosts.port));
    if let Err(error) = std::net::TcpListener::bind(at) {
        panic!(
            "this machine has no IPv6 loopback ({at}: {error}): turn it on (net.ipv6.conf.lo.disable_ipv6=0)"
        );
    }
    let six = Sink::start(at, true, |_| Manner::Accept);
    accept(&relay, "you@six.test");
    six.await_mail_for("you@six.test");
}

#[test]
fn a_null_mx_bounces_at_once() {
    check_report("you@null.test", &["5.1.10"]);
}

#[test]
fn a_domain_that_does_not_exist_bounces() {
    check_report("you@nowhere.test", &["Status: 5."]);
}

#[test]
fn mail_waits_for_a_name_server_that_is_not_there() {
    let hosts = Hosts::start();
    let at = place::free_place();
    let relay = hosts.relay(at);
    accept(&relay, "you@ordered.test");
    wait_until("a deferral", PATIENCE, || {
        let listed = relay.verb(&["queue", "list", "--json"]);
        String::from_utf8_lossy(&listed.stdout).contains("\"class\"")
    });
    assert!(hosts.first.read(<[_]>::is_empty));
    let _names = NameServer::start(at, &hosts.records());
    hosts.first.await_mail_for("you@ordered.test");
}
