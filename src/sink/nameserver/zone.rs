//! What the name server knows, and its answer to one query.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::ProtoError;
use hickory_resolver::proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

/// Most CNAMEs that are followed for one query.
const CNAMES_MAX: usize = 8;

/// How a name fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// SERVFAIL.
    Servfail,
    /// No answer at all.
    Timeout,
    /// NXDOMAIN, whatever records there are.
    Nxdomain,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    Mx(u16, String),
    Address(IpAddr),
    Cname(String),
}

/// Names and their records. Names are taken in any case, with or without the final dot.
///
/// `*.example.org` stands for all names below `example.org` that have no records of their own. A name above one with
/// records exists without records; every other name does not exist.
#[derive(Clone, Debug)]
pub struct Zone {
    records: BTreeMap<String, Vec<Data>>,
    failures: BTreeMap<String, Failure>,
    ttl: u32,
}

impl Default for Zone {
    fn default() -> Self {
        Self { records: BTreeMap::new(), failures: BTreeMap::new(), ttl: 60 }
    }
}

impl Zone {
    /// A zone without names. Answers, negative ones too, may be cached for 60 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many seconds answers may be cached.
    #[must_use]
    pub fn ttl(mut self, seconds: u32) -> Self {
        self.ttl = seconds;
        self
    }

    /// Adds an MX record.
    #[must_use]
    pub fn mx(self, domain: &str, preference: u16, host: &str) -> Self {
        self.with(domain, Data::Mx(preference, key(host)))
    }

    /// Adds a null MX (RFC 7505).
    #[must_use]
    pub fn null_mx(self, domain: &str) -> Self {
        self.with(domain, Data::Mx(0, String::new()))
    }

    /// Adds an A record.
    #[must_use]
    pub fn a(self, name: &str, address: impl Into<Ipv4Addr>) -> Self {
        self.with(name, Data::Address(address.into().into()))
    }

    /// Adds an AAAA record.
    #[must_use]
    pub fn aaaa(self, name: &str, address: impl Into<Ipv6Addr>) -> Self {
        self.with(name, Data::Address(address.into().into()))
    }

    /// Adds a CNAME record; it hides the name's other records.
    #[must_use]
    pub fn cname(self, name: &str, target: &str) -> Self {
        self.with(name, Data::Cname(key(target)))
    }

    /// Makes every query for this very name fail.
    #[must_use]
    pub fn fail(mut self, name: &str, how: Failure) -> Self {
        self.failures.insert(key(name), how);
        self
    }

    fn with(mut self, name: &str, data: Data) -> Self {
        self.records.entry(key(name)).or_default().push(data);
        self
    }

    /// The answer to a query; `None` is silence. Names that DNS can't hold give SERVFAIL.
    pub(super) fn answer(&self, query: &Message) -> Option<Message> {
        let mut answer = Message::response(query.id, query.op_code);
        answer.metadata.recursion_desired = query.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_queries(query.queries.iter().cloned());
        if query.edns.is_some() {
            answer.set_edns(Edns::new());
        }
        let [question] = query.queries.as_slice() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return Some(answer);
        };
        if query.op_code != OpCode::Query {
            answer.metadata.response_code = ResponseCode::NotImp;
            return Some(answer);
        }
        let name = key(&question.name().to_ascii());
        answer.metadata.response_code = match self.failures.get(&name) {
            Some(Failure::Timeout) => return None,
            Some(Failure::Servfail) => ResponseCode::ServFail,
            Some(Failure::Nxdomain) => self.negative(&mut answer, ResponseCode::NXDomain),
            None => self
                .resolve(question.name().clone(), question.query_type(), &mut answer)
                .unwrap_or(ResponseCode::ServFail),
        };
        Some(answer)
    }

    /// Adds the records of a name, following its CNAMEs.
    fn resolve(
        &self,
        mut owner: Name,
        kind: RecordType,
        answer: &mut Message,
    ) -> Result<ResponseCode, ProtoError> {
        for _ in 0..CNAMES_MAX {
            let name = key(&owner.to_ascii());
            let Some(records) = self.records_of(&name) else {
                let code =
                    if self.has_names_below(&name) { ResponseCode::NoError } else { ResponseCode::NXDomain };
                return Ok(self.negative(answer, code));
            };
            let alias = records.iter().find_map(|data| match data {
                Data::Cname(target) => Some(target),
                _ => None,
            });
            if let Some(target) = alias.filter(|_| kind != RecordType::CNAME) {
                let target = full_name(target)?;
                let data = RData::CNAME(CNAME(target.clone()));
                answer.add_answer(Record::from_rdata(owner, self.ttl, data));
                owner = target;
                continue;
            }
            let before = answer.answers.len();
            for data in records {
                let data = data.rdata()?;
                if data.record_type() == kind {
                    answer.add_answer(Record::from_rdata(owner.clone(), self.ttl, data));
                }
            }
            if answer.answers.len() == before {
                return Ok(self.negative(answer, ResponseCode::NoError));
            }
            return Ok(ResponseCode::NoError);
        }
        Ok(ResponseCode::ServFail)
    }

    fn records_of(&self, name: &str) -> Option<&Vec<Data>> {
        let parents =
            std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent));
        let wildcards = parents.skip(1).map(|parent| format!("*.{parent}"));
        std::iter::once(name.to_owned()).chain(wildcards).find_map(|name| self.records.get(&name))
    }

    fn has_names_below(&self, name: &str) -> bool {
        let suffix = format!(".{name}");
        self.records.keys().any(|known| known.ends_with(&suffix))
    }

    /// Adds the SOA that makes a negative answer cacheable (RFC 2308 section 3).
    fn negative(&self, answer: &mut Message, code: ResponseCode) -> ResponseCode {
        let soa = SOA::new(Name::root(), Name::root(), 1, 3600, 600, 86_400, self.ttl);
        answer.add_authority(Record::from_rdata(Name::root(), self.ttl, RData::SOA(soa)));
        code
    }
}

impl Data {
    fn rdata(&self) -> Result<RData, ProtoError> {
        Ok(match self {
            Self::Mx(preference, host) => RData::MX(MX::new(*preference, full_name(host)?)),
            Self::Address(IpAddr::V4(address)) => RData::A(A(*address)),
            Self::Address(IpAddr::V6(address)) => RData::AAAA(AAAA(*address)),
            Self::Cname(target) => RData::CNAME(CNAME(full_name(target)?)),
        })
    }
}

/// How names are kept: lower case, no final dot; the root is empty.
pub(super) fn key(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn full_name(key: &str) -> Result<Name, ProtoError> {
    Name::from_ascii(format!("{key}."))
}
