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
