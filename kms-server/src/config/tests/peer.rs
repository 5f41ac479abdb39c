//! The sections of the other site, and of other nodes of this one.

use super::{Config, ConfigError, EXAMPLE, Folder, says};
use kms_core::site::peer::PeerKind;

/// Whether it is one of the settings of the other site or of other nodes, which the example has not.
pub(super) fn of_peer(setting: &str) -> bool {
    peer_section().contains(setting) || node_section().contains(setting)
}

/// The section of another node, as the example has it.
fn node_section() -> &'static str {
    let (_, rest) = EXAMPLE.split_once("#[[nodes]]").unwrap();
    rest.split_once("\n\n").unwrap().0
}

/// The section of the other site, as the example has it.
fn peer_section() -> &'static str {
    let (_, rest) = EXAMPLE.split_once("#[peer]").unwrap();
    rest.split_once("\n\n").unwrap().0
}

/// The example with the other site in it.
fn with_peer(section: &str) -> Result<Config, ConfigError> {
    let folder = Folder::new();
    let text = folder.text.replace("single_site = true", "single_site = false");
    let text = text.replace("\n[audit]", &format!("\n{section}\n[audit]"));
    Config::load(&folder.write("kms.toml", text.as_bytes(), 0o644))
}

#[test]
fn the_other_site_is_named_in_full_or_there_is_none() {
    let folder = Folder::new();
    says(&folder.refusal("single_site = true", "single_site = false"), &["[peer]", "single_site"]);
    let least = "[peer]\nsite = \"south\"\nendpoints = [\"https://a:1\"]\nca = \"/ca.pem\"\n";
    let both = folder.refusal("\n[audit]", &format!("\n{least}\n[audit]"));
    says(&both, &["single_site` is true", "[peer]"]);

    // The defaults are those of the comments.
    let commented: String =
        peer_section().lines().map(|line| line.trim_start_matches('#').to_owned() + "\n").collect();
    let spelt_out = with_peer(&format!("[peer]{commented}")).unwrap().peer.unwrap();
    let bare = least
        .replace("https://a:1", "https://kms.south.example.org:7443")
        .replace("/ca.pem", "/etc/ami/tls/south-ca.pem");
    let mut bare = with_peer(&bare).unwrap().peer.unwrap();
    assert_eq!(bare.connection.server_name.take(), None);
    bare.connection.server_name = Some("kms.south.example.org".to_owned());
    assert_eq!(format!("{spelt_out:?}"), format!("{bare:?}"));
    assert_eq!(bare.connection.endpoints, ["kms.south.example.org:7443"]);
}

#[test]
fn a_peer_that_can_t_be_is_refused_by_the_setting() {
    let least = "[peer]\nsite = \"south\"\nendpoints = [\"https://a:1\"]\nca = \"/ca.pem\"\n";
    for (from, to, parts) in [
        ("\"south\"", "\"north\"", ["`peer.site`", "`site.name`"]),
        ("[\"https://a:1\"]", "[]", ["`peer.endpoints`", "https://"]),
        ("https://a:1", "http://a:1", ["`peer.endpoints`", "https://"]),
        ("https://a:1", "https://a", ["`peer.endpoints`", "https://"]),
        ("https://a:1", "https://a:1/x", ["`peer.endpoints`", "https://"]),
        ("\"/ca.pem\"", "\"ca.pem\"", ["`peer.ca`", "from /"]),
        (
            "ca =",
            "proof_age_max_s = 100\nca =",
            ["`peer.proof_age_max_s`", "`peer.prove_interval_s`"],
        ),
        ("ca =", "heartbeat_ms = 1\nca =", ["`peer.heartbeat_ms`", "100"]),
    ] {
        let refused = with_peer(&least.replace(from, to)).map(|_| ()).unwrap_err();
        says(&refused.to_string(), &parts);
    }
}

/// An authority, by its name and key, and the certificate of a server that it issued.
fn authority(name: &str) -> (String, String) {
    let named = |name: &str| {
        let mut params =
            rcgen::CertificateParams::new(vec!["kms.south.example.org".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = named(name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let own = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let server = named("a server").signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer);
    (own, server.unwrap().pem())
}

const PEER: &str = "name = \"kms.south\"\nroles = [\"peer\"]";

/// The findings of a site with another one by the authorities in `ca`, with these authorities of callers, and this caller.
fn found(ca: &str, clients: &str, caller: &str) -> Vec<String> {
    let folder = Folder::new();
    folder.furnish();
    let ca = folder.write("south.pem", ca.as_bytes(), 0o644).display().to_string();
    folder.write("tls/clients.pem", clients.as_bytes(), 0o644);
    let text = folder.text.replace("single_site = true", "single_site = false");
    let peer = FIRST.replace("/ca.pem", &ca);
    let text = text.replace("\n[audit]", &format!("\n{peer}\n[audit]"));
    let text = text.replace("\n[log]", &format!("\n[[rpc.callers]]\n{caller}\n\n[log]"));
    let config = Config::load(&folder.write("kms.toml", text.as_bytes(), 0o644)).unwrap();
    super::check(&config, super::NOW_MS).iter().map(ToString::to_string).collect()
}

#[test]
fn check_finds_that_no_caller_can_be_the_other_site() {
    let (ours, _) = authority("ours");
    for caller in [PEER, "name = \"x\"\nroles = [\"peer\", \"hes\"]\nsite = \"south\""] {
        assert_eq!(found(&ours, &ours, caller), [""; 0]);
    }
    for caller in [
        "name = \"kms.south\"\nroles = [\"replica\"]",
        "name = \"south\"\nroles = [\"hes\"]",
        "name = \"kms.south\"\nroles = [\"peer\"]\nsite = \"west\"",
    ] {
        let found = found(&ours, &ours, caller);
        assert_eq!(found.len(), 1, "{found:?}");
        says(&found[0], &["rpc.callers: no caller", "site \"south\"", "roles = [\"peer\"]"]);
    }
}

#[test]
fn check_finds_an_authority_of_the_other_site_that_is_none_of_its_callers() {
    // Of one name, as the handbook has it.
    let ((ours, _), (theirs, _)) = (authority("one name"), authority("one name"));
    let found_so = found(&theirs, &ours, PEER);
    assert_eq!(found_so.len(), 1, "{found_so:?}");
    says(&found_so[0], &["rpc.tls.client_ca: no authority in", "CN=one name", "clients.pem"]);
    assert_eq!(found(&theirs, &format!("{ours}{theirs}"), PEER), [""; 0]);
}

#[test]
fn check_says_nothing_of_authorities_whose_own_stand_in_neither_file() {
    let ((ours, server), (theirs, _)) = (authority("ours"), authority("theirs"));
    let params = || {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    };
    let root = rcgen::Issuer::new(params(), rcgen::KeyPair::generate().unwrap());
    let mut middle = params();
    middle.distinguished_name.push(rcgen::DnType::CommonName, "in the middle");
    let middle = middle.signed_by(&rcgen::KeyPair::generate().unwrap(), &root).unwrap().pem();
    assert_eq!(found(&theirs, &middle, PEER), [""; 0]);
    assert_eq!(found(&middle, &ours, PEER), [""; 0]);
    // One of a file's certificates is enough.
    assert_eq!(found(&format!("{server}{ours}"), &ours, PEER), [""; 0]);
}

#[test]
fn check_finds_a_servers_certificate_in_the_place_of_its_authority() {
    let ((ours, _), (_, of_theirs)) = (authority("ours"), authority("theirs"));
    let found = found(&of_theirs, &ours, PEER);
    assert_eq!(found.len(), 1, "{found:?}");
    says(&found[0], &["peer.ca: ", "south.pem holds no certificate of an authority"]);
}

/// The example as a read-only site, with these sections.
fn read_only(sections: &str) -> Result<Config, ConfigError> {
    let folder = Folder::new();
    let text = folder.text.replace("single_site = true", "single_site = false\nread_only = true");
    let text = text.replace("\n[audit]", &format!("\n{sections}\n[audit]"));
    Config::load(&folder.write("kms.toml", text.as_bytes(), 0o644))
}

const FIRST: &str = "[peer]\nsite = \"south\"\nendpoints = [\"https://a:1\"]\nca = \"/ca.pem\"\n";
const SECOND: &str =
    "[second_peer]\nsite = \"west\"\nendpoints = [\"https://b:1\"]\nca = \"/ca.pem\"\n";

#[test]
fn a_read_only_site_follows_one_site_or_either_of_two_and_nobody_else_does() {
    let both = format!("{FIRST}{SECOND}");
    let config = read_only(FIRST).unwrap();
    assert_eq!(config.site.kind(), PeerKind::Replica);
    let peer = config.peer.unwrap();
    assert!(peer.second.is_none() && peer.replication.is_peer("south"));
    assert!(!peer.replication.is_peer("west"));
    let peer = read_only(&both).unwrap().peer.unwrap();
    assert_eq!(peer.second.unwrap().endpoints, ["b:1"]);
    assert_eq!(peer.replication.peers().collect::<Vec<_>>(), ["south", "west"]);

    let refused =
        |outcome: Result<Config, ConfigError>| outcome.map(|_| ()).unwrap_err().to_string();
    says(&refused(with_peer(&both)), &["[second_peer]", "site.read_only"]);
    for (from, to, parts) in [
        ("\"west\"", "\"south\"", ["`second_peer.site`", "\"south\""]),
        ("\"west\"", "\"north\"", ["`second_peer.site`", "\"north\""]),
        ("https://b:1", "http://b:1", ["`peer.endpoints`", "https://"]),
        ("[second_peer]", "[third_peer]", ["third_peer", "unknown"]),
    ] {
        says(&refused(read_only(&both.replace(from, to))), &parts);
    }
    let folder = Folder::new();
    let alone = folder.refusal("single_site = true", "single_site = true\nread_only = true");
    says(&alone, &["site.read_only", "site.single_site"]);
}

#[test]
fn a_caller_that_is_a_site_may_say_which_one_and_no_other_caller_does() {
    let with = |caller: &str| {
        let folder = Folder::new();
        let text = folder.text.replace("\n[log]", &format!("\n[[rpc.callers]]\n{caller}\n\n[log]"));
        Config::load(&folder.write("kms.toml", text.as_bytes(), 0o644))
    };
    let named = with("name = \"kms.west\"\nroles = [\"replica\"]\nsite = \"west\"").unwrap();
    let sites: Vec<_> = named.rpc.sites.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(sites, [("kms.west", "west")]);
    let refused = with("name = \"x\"\nroles = [\"hes\"]\nsite = \"west\"").map(|_| ());
    says(&refused.unwrap_err().to_string(), &["`rpc.callers`", "\"x\"", "`site`"]);
}

/// The example with these sections of other nodes in it.
fn with_nodes(sections: &str) -> Result<Config, ConfigError> {
    let folder = Folder::new();
    let text = folder.text.replace("\n[audit]", &format!("\n{sections}\n[audit]"));
    Config::load(&folder.write("kms.toml", text.as_bytes(), 0o644))
}

#[test]
fn other_nodes_are_named_in_full() {
    let least = least_node();
    // The defaults are those of the comments.
    let commented: String =
        node_section().lines().map(|line| line.trim_start_matches('#').to_owned() + "\n").collect();
    let spelt_out = with_nodes(&format!("[[nodes]]{commented}")).unwrap().nodes;
    let mut bare = with_nodes(&least).unwrap().nodes;
    let way = bare.values_mut().next().unwrap();
    assert_eq!((way.endpoints.remove(0).as_str(), way.server_name.take()), ("a:1", None));
    way.endpoints.push("kms-2.north.example.org:7443".to_owned());
    way.server_name = Some("kms-2.north.example.org".to_owned());
    way.ca = "/etc/ami/tls/servers.pem".into();
    assert_eq!(spelt_out, bare);
    assert!(with_nodes("").unwrap().nodes.is_empty());
}

const NODE: &str = "0123456789abcdef0123456789abcdef";

fn least_node() -> String {
    format!("[[nodes]]\nnode = \"{NODE}\"\nendpoint = \"https://a:1\"\nca = \"/ca.pem\"\n")
}

#[test]
fn another_node_that_can_t_be_is_refused_by_the_setting() {
    let least = least_node();
    let other = least.replace("0123456789abcdef0", "f123456789abcdef0");
    assert_eq!(with_nodes(&format!("{least}{other}")).unwrap().nodes.len(), 2);
    let refusal = |text: &str| with_nodes(text).unwrap_err().to_string();
    says(&refusal(&format!("{least}{least}")), &["[[nodes]]", NODE, "twice"]);
    for (from, to, parts) in [
        (NODE, "0123", ["`nodes.node`", "node-id"]),
        (NODE, "kms-2", ["`nodes.node`", "node-id"]),
        ("https://a:1", "http://a:1", ["`nodes.endpoint`", "https://"]),
        ("https://a:1", "https://a", ["`nodes.endpoint`", "https://"]),
        ("\"/ca.pem\"", "\"ca.pem\"", ["`nodes.ca`", "from /"]),
        ("ca =", "connect_timeout_ms = 1\nca =", ["`nodes.connect_timeout_ms`", "100"]),
    ] {
        says(&refusal(&least.replace(from, to)), &parts);
    }
    let many: String =
        (0..65).map(|n| least.replace("0123456789abcdef0", &format!("{n:017x}"))).collect();
    says(&refusal(&many), &["[[nodes]]", "65", "64"]);
}
