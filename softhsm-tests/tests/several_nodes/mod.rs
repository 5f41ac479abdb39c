//! Servers of one site over one PostgreSQL, laid out and not started.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

use std::fs;

use softhsm_tests::settings::{postgresql, quoted};

use crate::{
    common::{Home, blank_home, copy},
    postgres_common::{Cluster, USER},
};

pub type Settings = Vec<(&'static str, &'static str, String)>;

/// The `[store]` of a server that reaches `cluster` by its socket.
pub fn store(cluster: &Cluster) -> Settings {
    let mut store = postgresql(&cluster.sockets(), "ami", USER);
    store.push(("store", "port", cluster.port().to_string()));
    store
}

pub fn blank(settings: &Settings) -> Home {
    let borrowed: Vec<_> = settings.iter().map(|(s, k, v)| (*s, *k, v.as_str())).collect();
    blank_home(&borrowed)
}

/// The site's first node, its token and its database made by `kms-server init`.
pub fn first_node(cluster: &Cluster) -> Home {
    let home = blank(&store(cluster));
    home.init().unwrap();
    home
}

/// A further node: its own data directory and port; the first one's token, PIN and certificates.
pub fn further_node(first: &Home, cluster: &Cluster) -> Home {
    let mut settings = store(cluster);
    let tokens = first.places().tokens.display().to_string();
    settings.push(("hsm", "token_dir", quoted(&tokens)));
    let home = blank(&settings);
    for part in ["secrets", "certificates"] {
        let target = home.places().dir.join(part);
        fs::remove_dir_all(&target).unwrap();
        copy(&first.places().dir.join(part), &target);
    }
    fs::copy(&first.places().softhsm_conf, &home.places().softhsm_conf).unwrap();
    home
}

pub fn cluster() -> Cluster {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    cluster
}
