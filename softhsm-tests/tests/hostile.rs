//! A short version of each attack of `make hostile`: the honest caller's calls all succeed, and the server
//! keeps its memory. How fast it stays is measured there, on a machine that has nothing else to do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::time::Duration;

use common::{home, programs};
use softhsm_tests::{
    Pair, SiteOptions,
    hostile::{Attack, Times, assail, assail_pair},
};

const SHORT: Times = Times {
    quiet: Duration::from_millis(500),
    attack: Duration::from_secs(3),
    after: Duration::from_millis(500),
};

fn attack(attack: Attack) {
    let finding = if attack.is_by_a_peer() {
        let dir = tempfile::Builder::new().prefix("kms-hostile-").tempdir().unwrap();
        let pair = Pair::make(dir.path(), &programs(), &SiteOptions::default()).unwrap();
        assail_pair(&pair, attack, SHORT).unwrap()
    } else {
        assail(&home(), attack, SHORT).unwrap()
    };
    println!("{finding:?}");
    assert!(!finding.ended, "{finding:?}");
    assert!(finding.calls > 20 && finding.errors.0 == 0, "{finding:?}");
    assert!(finding.rss_mib < 512, "{finding:?}");
}

macro_rules! attacks {
    ($($name:ident = $attack:ident;)*) => {
        $(
            #[test]
            fn $name() {
                attack(Attack::$attack);
            }
        )*

        #[test]
        fn each_attack_has_its_test() {
            let tested = [$(Attack::$attack),*];
            assert!(Attack::ALL.iter().all(|attack| tested.contains(attack)));
        }
    };
}

attacks! {
    half_sent_messages_are_felt_by_their_sender = HalfSent;
    a_byte_a_second_is_given_up = OneByte;
    unread_streams_stop_being_read = Unread;
    many_streams_leave_room_for_others = ManyStreams;
    messages_of_16_mib_leave_room_for_others = Huge;
    stream_resets_cost_little = Resets;
    header_bombs_cost_little = Headers;
    empty_ids_are_counted_before_they_are_decoded = EmptyIds;
    empty_lines_are_counted_before_they_are_decoded = Imports;
    empty_keys_are_counted_before_they_are_decoded = ImportKeys;
    windows_are_small = Windows;
    connections_without_http2_are_closed = NoPreface;
    connections_without_tls_make_room = TcpOnly;
    slow_handshakes_make_room = SlowHandshake;
    strangers_keep_nobody_out = Strangers;
    a_flood_by_the_peer_leaves_room_for_others = PeerFloods;
    followers_that_read_nothing_take_the_peers_places_only = PeerFollows;
    a_stalled_peer_stalls_nobody = PeerStalls;
    a_half_open_connection_to_the_peer_stalls_nobody = PeerHalfOpen;
}
