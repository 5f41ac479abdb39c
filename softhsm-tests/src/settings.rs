//! The configuration files of a site, as text.

use std::{net::Ipv4Addr, path::Path};

use rustix::process::{Resource, getrlimit};

use crate::{Module, Namespace, Programs, places::Places};

/// The role of a caller of the site. Each has a certificate and a `client-<role>.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A developer: HES and administrator in one. Its file is `client.toml`.
    Dev,
    /// The head-end system.
    Hes,
    /// Provisions meters.
    AmiAdmin,
    /// Rotates keys.
    Rotator,
    /// Another node of the site.
    Node,
    /// The other site.
    Peer,
    /// A read-only replica.
    Replica,
    /// Reads the audit log.
    Auditor,
    /// The second person of calls that need two.
    Approver,
    /// The timer that keeps the other site in step.
    Synchroniser,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Dev,
        Self::Hes,
        Self::AmiAdmin,
        Self::Rotator,
        Self::Node,
        Self::Peer,
        Self::Replica,
        Self::Auditor,
        Self::Approver,
        Self::Synchroniser,
    ];

    /// The name in its certificate.
    pub const fn caller(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Hes => "hes-1",
            Self::AmiAdmin => "admin-1",
            Self::Rotator => "rotator-1",
            Self::Node => "node-1",
            Self::Peer => "peer-1",
            Self::Replica => "replica-1",
            Self::Auditor => "auditor-1",
            Self::Approver => "approver-1",
            Self::Synchroniser => "synchroniser-1",
        }
    }

    /// The client's configuration file.
    pub const fn client_file(self) -> &'static str {
        match self {
            Self::Dev => "client.toml",
            Self::Hes => "client-hes.toml",
            Self::AmiAdmin => "client-ami_admin.toml",
            Self::Rotator => "client-rotator.toml",
            Self::Node => "client-node.toml",
            Self::Peer => "client-peer.toml",
            Self::Replica => "client-replica.toml",
            Self::Auditor => "client-auditor.toml",
            Self::Approver => "client-approver.toml",
            Self::Synchroniser => "client-synchroniser.toml",
        }
    }

    /// The roles that the server grants it.
    const fn grants(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &["ami_admin", "hes", "transmitter"],
            Self::Hes => &["hes"],
            Self::AmiAdmin => &["ami_admin"],
            Self::Rotator => &["rotator"],
            Self::Node => &["node"],
            Self::Peer => &["peer"],
            Self::Replica => &["replica"],
            Self::Auditor => &["auditor"],
            Self::Approver => &["approver"],
            Self::Synchroniser => &["synchroniser"],
        }
    }
}

/// Where the token keeps its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokens {
    /// In the site's directory: they last as long as it does.
    #[default]
    Inside,
    /// In `/dev/shm`, until the [`crate::Site`] is dropped: a token object takes 1 ms instead of 100.
    SharedMemory,
}

/// One line of `kms.toml` that differs from what [`crate::Site::make`] would write.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The section, such as `rpc.limits`.
    pub section: &'static str,
    /// The key.
    pub key: &'static str,
    /// The value as it is to stand in the file: strings with their quotes. Empty: leave the key out.
    pub value: String,
}

/// The `[store]` of a server that reaches a PostgreSQL by the socket in `sockets`, as section, key and value. A port
/// other than 5432 has to be added.
pub fn postgresql(
    sockets: &Path,
    database: &str,
    user: &str,
) -> Vec<(&'static str, &'static str, String)> {
    vec![
        ("store", "kind", quoted("postgresql")),
        ("store", "path", String::new()),
        ("store", "host", quoted(&sockets.display().to_string())),
        ("store", "database", quoted(database)),
        ("store", "user", quoted(user)),
        ("store", "allow_no_tls", "true".to_owned()),
    ]
}

/// The options of a site.
#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// The site's name.
    pub name: String,
    /// The server's port; `None`: a free one.
    pub port: Option<u16>,
    /// Where the token is.
    pub tokens: Tokens,
    /// The product that it is of.
    pub module: Module,
    /// The network that its servers are in; `None`: the machine's.
    pub network: Option<Namespace>,
    /// The number of blocks of its key domain.
    pub block_count: u32,
    /// Accept clear keys in imports.
    pub allow_clear: bool,
    /// The other site of the key domain.
    pub peer: Option<PeerOptions>,
    /// Names of read-only replicas that may follow this site.
    pub replicas: Vec<String>,
    /// Differences from the defaults.
    pub settings: Vec<Setting>,
}

/// The other site, as a site's configuration names it.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// Its name.
    pub site: String,
    /// The port of its server.
    pub port: u16,
    /// Whether *this* site is the one of even epochs.
    pub even: bool,
    /// Whether this site follows for ever.
    pub read_only: bool,
    /// The other site that it may follow then, and the port of its server.
    pub second: Option<(String, u16)>,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            name: "site-a".to_owned(),
            port: None,
            tokens: Tokens::Inside,
            module: Module::SoftHsm,
            network: None,
            // Few: a handful of meters does not need 4,096 HSM calls to be opened.
            block_count: 64,
            allow_clear: true,
            peer: None,
            replicas: Vec::new(),
            settings: Vec::new(),
        }
    }
}

/// The least arena that a site can do with, in MiB: some thousands of meters.
const SMALL_ARENA_MIB: u64 = 4;
/// The arena where the memlock limit is no concern, in MiB.
const LARGE_ARENA_MIB: u64 = 64;
/// The memory that the process locks besides its arena, in MiB; rounded up.
const OTHER_LOCKED_MIB: u64 = 2;

/// The arena that the server may lock here: its size in MiB, and whether it has to go
/// without the lock.
pub fn arena() -> (u64, bool) {
    let limit_mib = getrlimit(Resource::Memlock).current.map_or(u64::MAX, |bytes| bytes >> 20);
    if limit_mib >= LARGE_ARENA_MIB + OTHER_LOCKED_MIB {
        (LARGE_ARENA_MIB, false)
    } else {
        (SMALL_ARENA_MIB, limit_mib < SMALL_ARENA_MIB + OTHER_LOCKED_MIB)
    }
}

/// SoftHSM's own configuration file.
pub(crate) fn softhsm_conf(tokens: &Path) -> String {
    format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n\
         slots.removable = false\n",
        tokens.display()
    )
}

/// A client's configuration file; its paths are relative to itself.
pub(crate) fn client_toml(role: Role, host: &str, port: u16) -> String {
    let caller = role.caller();
    format!(
        r#"endpoints = ["https://{host}:{port}"]
ca = "certificates/ca.pem"
certificate = "certificates/{caller}.pem"
private_key = "certificates/{caller}.key"
server_name = "localhost"
deadline_ms = 10000
retries = 2
"#
    )
}

/// The same of a client that knows several sites, in this order.
pub(crate) fn client_of_both(role: Role, sites: [(&str, Vec<String>); 2]) -> String {
    let caller = role.caller();
    let common = format!(
        r#"ca = "certificates/ca.pem"
certificate = "certificates/{caller}.pem"
private_key = "certificates/{caller}.key"
server_name = "localhost"
deadline_ms = 10000
retries = 2
"#
    );
    let site = |(name, servers): (&str, Vec<String>)| {
        let endpoints: Vec<String> =
            servers.iter().map(|server| quoted(&format!("https://{server}"))).collect();
        format!("\n[[sites]]\nname = \"{name}\"\nendpoints = [{}]\n", endpoints.join(", "))
    };
    common + &sites.map(site).concat()
}

/// `kms.toml`, with the options' settings in the place of the defaults.
pub(crate) fn kms_toml(
    places: &Places,
    programs: &Programs,
    port: u16,
    options: &SiteOptions,
) -> String {
    let (arena_mib, allow_unlocked) = arena();
    let module = match &options.module {
        Module::SoftHsm => &programs.softhsm,
        Module::Kryoptic(library) => library,
    };
    let host = options.network.as_ref().map_or(Ipv4Addr::LOCALHOST, Namespace::inside);
    let mut lines: Vec<(&str, &str, String)> = vec![
        ("site", "name", quoted(&options.name)),
        ("site", "data_dir", path(&places.data)),
        ("site", "single_site", "true".to_owned()),
        ("site", "block_count", options.block_count.to_string()),
        ("site", "even", "true".to_owned()),
        ("hsm", "module", path(module)),
        ("hsm", "token_label", quoted(&format!("ami-{}", options.name))),
        ("hsm", "pin_file", path(&places.pin)),
        ("hsm", "sessions_max", "4".to_owned()),
        ("hsm", "call_timeout_ms", "5000".to_owned()),
        ("hsm", "patience_ms", "2000".to_owned()),
        // SoftHSM knows no other, and what joins it has to be spoken to by it.
        ("hsm", "oaep_hash", quoted("sha1")),
        ("hsm", "token_dir", path(&places.tokens)),
        ("store", "kind", quoted("sqlite")),
        ("store", "path", path(&places.data.join("kms.db"))),
        ("keyring", "arena_mib", arena_mib.to_string()),
        ("keyring", "allow_unlocked", allow_unlocked.to_string()),
        ("keyring", "warm_up_parallelism", "2".to_owned()),
        ("import", "allow_clear", options.allow_clear.to_string()),
        ("rpc", "listen", quoted(&format!("{host}:{port}"))),
        ("rpc.tls", "certificate", path(&places.certificate("server"))),
        ("rpc.tls", "private_key", path(&places.private_key("server"))),
        ("rpc.tls", "client_ca", path(&places.certificate("ca"))),
        ("log", "format", quoted("text")),
        ("log", "level", quoted("info")),
    ];
    if let Some(PeerOptions { site, port, even, read_only, second }) = &options.peer {
        lines.retain(|(section, key, _)| {
            *section != "site" || !["single_site", "even"].contains(key)
        });
        lines.extend([
            ("site", "single_site", "false".to_owned()),
            ("site", "even", even.to_string()),
            ("site", "read_only", read_only.to_string()),
            ("peer", "site", quoted(site)),
            ("peer", "endpoints", format!("[\"https://localhost:{port}\"]")),
            ("peer", "ca", path(&places.certificate("ca"))),
            ("peer", "server_name", quoted("localhost")),
            ("peer", "prove_interval_s", "1".to_owned()),
            ("peer", "proof_age_max_s", "30".to_owned()),
        ]);
        lines.extend(second.iter().flat_map(|(site, port)| {
            [
                ("second_peer", "site", quoted(site)),
                ("second_peer", "endpoints", format!("[\"https://localhost:{port}\"]")),
                ("second_peer", "ca", path(&places.certificate("ca"))),
                ("second_peer", "server_name", quoted("localhost")),
            ]
        }));
    }
    for Setting { section, key, value } in &options.settings {
        lines.retain(|(s, k, _)| (s, k) != (section, key));
        if !value.is_empty() {
            lines.push((section, key, value.clone()));
        }
    }
    let peer = options.peer.iter().flat_map(|peer| {
        let second = peer.second.iter().map(|(site, _)| (site, "peer"));
        [(&peer.site, "peer")].into_iter().chain(second)
    });
    let replicas = options.replicas.iter().map(|site| (site, "replica"));
    let sites = peer.chain(replicas).map(|(site, role)| {
        format!("[[rpc.callers]]\nname = {}\nroles = [\"{role}\"]\n\n", quoted(site))
    });
    sections(&lines) + &callers() + &sites.collect::<String>()
}

/// The lines under their sections, in the order in which these first appear.
fn sections(lines: &[(&str, &str, String)]) -> String {
    let mut sections: Vec<(&str, String)> = Vec::new();
    for (section, key, value) in lines {
        let line = format!("{key} = {value}\n");
        match sections.iter_mut().find(|(name, _)| name == section) {
            Some((_, body)) => body.push_str(&line),
            None => sections.push((section, line)),
        }
    }
    sections.iter().map(|(section, body)| format!("[{section}]\n{body}\n")).collect()
}

fn callers() -> String {
    let caller = |role: &Role| {
        let grants: Vec<String> = role.grants().iter().map(|grant| quoted(grant)).collect();
        let name = quoted(role.caller());
        format!("[[rpc.callers]]\nname = {name}\nroles = [{}]\n\n", grants.join(", "))
    };
    Role::ALL.iter().map(caller).collect()
}

/// A TOML basic string.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml_of(options: &SiteOptions) -> String {
        let programs = Programs {
            kms_server: "/bin/kms-server".into(),
            ami_tool: "/bin/ami-tool".into(),
            softhsm: "/lib/libsofthsm2.so".into(),
        };
        kms_toml(&Places::of("/site".as_ref()), &programs, 4711, options)
    }

    #[test]
    fn every_section_stands_once() {
        let text = toml_of(&SiteOptions::default());
        for section in ["[site]", "[hsm]", "[store]", "[keyring]", "[import]", "[rpc]", "[rpc.tls]"]
        {
            assert_eq!(text.lines().filter(|line| *line == section).count(), 1, "{section}");
        }
        assert_eq!(text.matches("[[rpc.callers]]").count(), Role::ALL.len());
    }

    #[test]
    fn a_setting_takes_the_place_of_the_default_and_an_empty_one_removes_it() {
        let set = |key, value: &str| Setting { section: "hsm", key, value: value.to_owned() };
        let settings = vec![set("sessions_max", "9"), set("token_dir", "")];
        let text = toml_of(&SiteOptions { settings, ..SiteOptions::default() });
        assert!(text.contains("sessions_max = 9\n") && !text.contains("sessions_max = 4"));
        assert!(!text.contains("token_dir"));
    }

    #[test]
    fn quotes_and_backslashes_do_not_end_a_string() {
        assert_eq!(quoted(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}
