//! The configuration of `rpc`, checked.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use super::access::policy::{CallerName, Policy};

/// Everything about the wire.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Certificates.
    pub tls: TlsConfig,
    /// The bounds of the wire.
    pub limits: Limits,
    /// The access policy.
    pub policy: Policy,
    /// The sites of callers whose certificates don't have the site's name.
    pub sites: BTreeMap<CallerName, String>,
    /// The address at which figures and readiness can be asked for; `None`: nowhere.
    pub metrics: Option<MetricsConfig>,
}

/// The files that say who we are and whom we believe. PEM; read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate, then its intermediates.
    pub certificate: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1.
    pub private_key: PathBuf,
    /// The authorities whose client certificates are accepted.
    pub client_ca: PathBuf,
    /// Their revocation lists, PEM or DER; none: nothing is asked about revocation. At most
    /// [`TlsConfig::CRLS_MAX`].
    pub client_crls: Vec<PathBuf>,
    /// The time for which a list still holds after its next update was due; at most a year.
    pub client_crl_grace: Duration,
    /// The file that remembers the newest list of each authority, so that none goes back across a restart;
    /// `None`: nowhere.
    pub client_crl_memory: Option<PathBuf>,
    /// The interval between two looks at the files; 1 ms to 1 hour.
    pub reload_poll: Duration,
}

impl TlsConfig {
    /// The interval between two looks at the files unless the configuration says otherwise.
    pub const RELOAD_POLL: Duration = Duration::from_secs(60);

    /// The most files of revocation lists: they are read at each look.
    pub const CRLS_MAX: usize = 64;
    /// Unless the file says otherwise: a week, for an authority that went down with its data centre.
    pub const CRL_GRACE: Duration = Duration::from_secs(7 * 24 * 3_600);

    /// These files, looked at every [`TlsConfig::RELOAD_POLL`].
    pub fn new(
        certificate: impl Into<PathBuf>,
        private_key: impl Into<PathBuf>,
        client_ca: impl Into<PathBuf>,
    ) -> Self {
        Self {
            certificate: certificate.into(),
            private_key: private_key.into(),
            client_ca: client_ca.into(),
            client_crls: Vec::new(),
            client_crl_grace: Self::CRL_GRACE,
            client_crl_memory: None,
            reload_poll: Self::RELOAD_POLL,
        }
    }
}

/// The way to the other site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// `host:port` of each of its servers.
    pub endpoints: Vec<String>,
    /// The authorities of its servers' certificates. PEM; read for each connection.
    pub ca: PathBuf,
    /// The name in these certificates; `None`: the endpoint's host.
    pub server_name: Option<String>,
    /// The longest time until there is a connection, TLS included, over all endpoints.
    pub connect_timeout: Duration,
}

/// The bounds of the wire, each with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest message that is read, in bytes; 1 KiB to 1 GiB.
    pub message_bytes_max: usize,
    /// The most APDUs in a batch, and lines in a message of an import; at least 1.
    pub batch_items_max: usize,
    /// Calls open at once on one connection; 1 to 65,536.
    pub streams_per_connection_max: u32,
    /// Connections open at once; at least 1.
    pub connections_max: usize,
    /// Connections that have not shown a certificate and begun HTTP/2 yet; at least 1.
    pub handshakes_max: usize,
    /// Calls open at once, over all connections; at least 1.
    pub calls_max: usize,
    /// The share of one caller in connections, calls, items and bytes, and one address of handshakes; 1
    /// to 100 percent. A batch or message within its own limit can be taken up whatever the share is.
    pub caller_share_percent: u32,
    /// APDUs and import lines being worked on at once, over all connections; at least
    /// `batch_items_max`, so that a batch within its own limit can always be taken up.
    pub in_flight_items_max: usize,
    /// Bytes that messages may take from their arrival until their answers are written, over all
    /// connections: what they unfold to counts, not their length. At least `message_bytes_max`.
    pub in_flight_bytes_max: usize,
    /// The longest time for a client's TLS handshake and the beginning of HTTP/2.
    pub handshake_timeout: Duration,
    /// In this time a message that has begun has to come, or 256 KiB of it.
    pub message_timeout: Duration,
    /// In this time an answer has to be read, or 1 MiB of it; then its connection is cut.
    pub answer_timeout: Duration,
    /// The longest time until a call's answer begins. Streams go on after that.
    pub call_timeout: Duration,
    /// The longest time for calls that are running at shutdown.
    pub drain_timeout: Duration,
    /// After this a connection is asked to end, and is cut `drain_timeout` later. `None`: never.
    pub connection_age_max: Option<Duration>,
}

/// The limits unless the configuration says otherwise.
impl Default for Limits {
    fn default() -> Self {
        Self {
            // 16 MiB: a full batch of 300-byte APDUs three times over.
            message_bytes_max: kms_core::wire::MESSAGE_BYTES_MAX,
            batch_items_max: 16_384,
            streams_per_connection_max: 1_024,
            connections_max: 1_024,
            handshakes_max: 256,
            calls_max: 4_096,
            caller_share_percent: 50,
            // A quarter of a second's work of one core at a million a second.
            in_flight_items_max: 262_144,
            in_flight_bytes_max: 256 << 20,
            handshake_timeout: Duration::from_secs(5),
            message_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(60),
            call_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(15),
            connection_age_max: Some(Duration::from_secs(3_600)),
        }
    }
}

/// A setting that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {is}; it must be {must}")]
pub struct BadSetting {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub is: String,
    /// The values that it may have.
    pub must: String,
}

impl Config {
    /// Checks the bounds that the fields' documentation states.
    pub fn new(
        listen: SocketAddr,
        tls: TlsConfig,
        limits: Limits,
        policy: Policy,
    ) -> Result<Self, BadSetting> {
        let sites = BTreeMap::new();
        let config = Self { listen, tls, limits, policy, sites, metrics: None };
        config.check()?;
        Ok(config)
    }

    /// The checks of [`Config::new`], for a `Config` put together by hand.
    pub fn check(&self) -> Result<(), BadSetting> {
        let poll = self.tls.reload_poll;
        if poll < Duration::from_millis(1) || poll > Duration::from_secs(3_600) {
            return Err(bad("tls.reload_poll", format!("{poll:?}"), "1 ms to 1 hour"));
        }
        let crls = self.tls.client_crls.len();
        if crls > TlsConfig::CRLS_MAX {
            let must = format!("{} files at most", TlsConfig::CRLS_MAX);
            return Err(bad("tls.client_crl", format!("{crls} files"), &must));
        }
        self.limits.check()
    }
}

impl Limits {
    fn check(&self) -> Result<(), BadSetting> {
        let Self {
            message_bytes_max,
            batch_items_max,
            streams_per_connection_max,
            connections_max,
            handshakes_max,
            calls_max,
            caller_share_percent,
            in_flight_items_max,
            in_flight_bytes_max,
            handshake_timeout,
            message_timeout,
            answer_timeout,
            call_timeout,
            drain_timeout,
            connection_age_max,
        } = self;
        // The most that tokio's semaphore and its u32 permits can count.
        const COUNT_MAX: usize = u32::MAX as usize >> 3;
        within("limits.message_bytes_max", *message_bytes_max, 1 << 10, 1 << 30)?;
        within("limits.batch_items_max", *batch_items_max, 1, COUNT_MAX)?;
        within(
            "limits.streams_per_connection_max",
            *streams_per_connection_max as usize,
            1,
            65_536,
        )?;
        within("limits.connections_max", *connections_max, 1, COUNT_MAX)?;
        within("limits.handshakes_max", *handshakes_max, 1, COUNT_MAX)?;
        within("limits.calls_max", *calls_max, 1, COUNT_MAX)?;
        within("limits.caller_share_percent", *caller_share_percent as usize, 1, 100)?;
        within("limits.in_flight_items_max", *in_flight_items_max, *batch_items_max, COUNT_MAX)?;
        let bytes_most = COUNT_MAX << 10;
        within("limits.in_flight_bytes_max", *in_flight_bytes_max, *message_bytes_max, bytes_most)?;
        for (name, is) in [
            ("limits.handshake_timeout", handshake_timeout),
            ("limits.message_timeout", message_timeout),
            ("limits.answer_timeout", answer_timeout),
            ("limits.call_timeout", call_timeout),
            ("limits.drain_timeout", drain_timeout),
            ("limits.connection_age_max", &connection_age_max.unwrap_or(*drain_timeout)),
        ] {
            if is.is_zero() {
                return Err(bad(name, format!("{is:?}"), "longer than 0"));
            }
        }
        Ok(())
    }
}

fn within(name: &'static str, is: usize, least: usize, most: usize) -> Result<(), BadSetting> {
    if (least..=most).contains(&is) {
        return Ok(());
    }
    Err(bad(name, is.to_string(), &format!("{least} to {most}")))
}

fn bad(name: &'static str, is: String, must: &str) -> BadSetting {
    BadSetting { name, is, must: must.to_owned() }
}

/// The address at which figures and readiness can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    listen: SocketAddr,
}

impl MetricsConfig {
    /// The address; port 0 takes any free one. Anyone who reaches it is answered, so one that others
    /// can reach has to be allowed in so many words.
    pub fn new(listen: SocketAddr, allow_remote: bool) -> Result<Self, BadSetting> {
        if allow_remote || listen.ip().is_loopback() {
            return Ok(Self { listen });
        }
        Err(BadSetting {
            name: "metrics.listen",
            is: listen.to_string(),
            must: "a loopback address such as 127.0.0.1:9464, unless metrics.allow_remote is true"
                .to_owned(),
        })
    }

    /// The address to listen on.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold() {
        assert_eq!(Limits::default().check(), Ok(()));
    }

    #[test]
    fn a_batch_that_could_never_be_taken_up_is_refused() {
        let limits = Limits { batch_items_max: 100, in_flight_items_max: 99, ..Limits::default() };
        let refused = limits.check().unwrap_err();
        assert_eq!(refused.name, "limits.in_flight_items_max");
        assert!(refused.to_string().contains("is 99; it must be 100 to"), "{refused}");
    }

    #[test]
    fn a_timeout_of_zero_is_refused() {
        let limits = Limits { handshake_timeout: Duration::ZERO, ..Limits::default() };
        assert_eq!(limits.check().unwrap_err().name, "limits.handshake_timeout");
    }

    #[test]
    fn an_address_that_others_can_reach_is_refused_unless_it_is_allowed() {
        for listen in ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464"] {
            let listen = listen.parse().unwrap();
            let refused = MetricsConfig::new(listen, false).unwrap_err();
            assert!(refused.to_string().contains("metrics.allow_remote"), "{refused}");
            assert!(MetricsConfig::new(listen, true).is_ok());
        }
        for listen in ["127.0.0.1:9464", "[::1]:9464"] {
            assert!(MetricsConfig::new(listen.parse().unwrap(), false).is_ok());
        }
    }
}
