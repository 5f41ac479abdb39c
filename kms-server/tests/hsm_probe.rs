//! The probe against a real SoftHSM: what init made holds, and what was tampered with is found.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;

use kms_server::hsm::pkcs11::{ProbeDepth, RowKind, probe};

on_a_token! {
    fn every_attack_is_refused_and_every_control_works(home) {
        let report = home.token().probe(ProbeDepth::Start).unwrap();
        println!("{report}");
        assert!(report.verdict().is_ok());
        let attacks = report.rows.iter().filter(|row| row.kind == RowKind::Attack).count();
        assert!(attacks > 200, "{attacks} attacks");
    }
}

on_a_token! {
    fn a_full_probe_also_attacks_a_ceremony_key_and_leaves_nothing_behind(home) {
        let before = files(&home.tokens());
        let report = home.token().probe(ProbeDepth::Full).unwrap();
        println!("{report}");
        assert!(report.verdict().is_ok());
        assert!(report.rows.iter().any(|row| row.what.starts_with("ami-ceremony: unwrap")));
        assert_eq!(files(&home.tokens()), before);
    }
}

on_a_blank_token! {
    fn a_token_before_init_is_probed_for_its_abilities(home) {
        let config = home.config();
        hsm_common::blank_token();
        let report = probe(&config, None, ProbeDepth::Start).unwrap();
        println!("{report}");
        assert!(report.verdict().is_ok());
    }
}

fn files(directory: &std::path::Path) -> usize {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files(&path) } else { 1 })
        .sum()
}
