//! Invariant 3 against who writes to the database: the marks of counters are taken away or put back between two runs of a
//! server, by the database itself. No counter goes out twice, and what is wrong is named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{collections::BTreeSet, fs};

use common::{
    Home, client, eventually,
    fleet::{GAK, GUEK, add, id, title, value},
    home, programs,
    up::{Up, sql},
};
use kms_client::{
    CounterDeclaration, KmsClient, MeterName, PlainApdu, Protected, Protecting, TransmitRefusal,
    Verdict,
};
use softhsm_tests::{Pair, Role, Site, SiteOptions};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

const GET: &[u8] = b"\xC0\x01\xC1\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00";

fn line(n: u64) -> String {
    let hex = |bytes: &[u8]| hex::encode_upper(bytes);
    let (own, guek, gak) = (hex(title(n).as_bytes()), hex(&value(n, GUEK)), hex(&value(n, GAK)));
    format!(
        r#"{{"meter_id":"{}","system_title":"{own}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}}],"policy":{{"client_title":"{}"}}}}"#,
        id(n),
        hex(b"AMIHES\x00\x01")
    )
}

async fn send(client: &KmsClient) -> Protected {
    let meter = MeterName::Title(title(1));
    let plain = PlainApdu { bytes: GET.into(), meter };
    client.encrypt(&plain, Protecting::default()).await.unwrap()
}

async fn declare(client: &KmsClient) {
    let declaration = CounterDeclaration {
        meter: MeterName::Title(title(1)),
        security_setup: 0,
        client: 0,
        broadcast: false,
        last_invocation_counter: None,
    };
    client.meters().declare_counter(&declaration).await.unwrap();
}

impl Up {
    async fn send(&self) -> Protected {
        send(&self.client).await
    }

    async fn refusal(&self) -> TransmitRefusal {
        let protected = self.send().await;
        assert!(protected.apdu.is_none(), "{protected:?}");
        println!("{}", protected.reason.unwrap_or_default());
        protected.refusal.unwrap()
    }

    /// It says so in its status, by itself.
    async fn says(&self, what: &str) {
        eventually(what, async || {
            let status = self.client.site_status().await.unwrap();
            status.faults.iter().any(|fault| fault.contains(what))
        })
        .await;
    }

    /// So many counters, none of which was seen before.
    async fn use_up(&self, times: usize, seen: &mut BTreeSet<u32>) {
        for _ in 0..times {
            let protected = self.send().await;
            assert_eq!(protected.verdict, Verdict::Ok, "{protected:?}");
            assert!(seen.insert(protected.invocation_counter.unwrap()), "{protected:?}");
        }
    }
}

/// A single site that has sent to a meter, and how its marks stood before.
async fn sent() -> (Home, BTreeSet<u32>) {
    let home = home();
    let up = Up::of(&home).await;
    add(&up.client, &[line(1)]).await;
    declare(&up.client).await;
    up.stop();
    sql(&home, "CREATE TABLE saved AS SELECT * FROM counter_marks").await;
    let up = Up::of(&home).await;
    let mut seen = BTreeSet::new();
    up.use_up(3, &mut seen).await;
    assert_eq!(up.client.site_status().await.unwrap().faults, [""; 0]);
    up.running.kill_9().unwrap();
    (home, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_3_a_mark_that_is_taken_away_or_put_back_gives_no_counter_out_twice() {
    let (home, mut seen) = sent().await;
    sql(&home, "CREATE TABLE newest AS SELECT * FROM counter_marks").await;
    let put_back = |table| {
        format!("DELETE FROM counter_marks; INSERT INTO counter_marks SELECT * FROM {table};")
    };
    for (rows, refusal, fault) in [
        (
            "DELETE FROM counter_marks".to_owned(),
            TransmitRefusal::CountersDamaged,
            "have no mark of epoch",
        ),
        // Of the founding, and authentic.
        (put_back("saved"), TransmitRefusal::CountersRolledBack, "were put back"),
    ] {
        sql(&home, &rows).await;
        let up = Up::of(&home).await;
        assert_eq!(up.refusal().await, refusal);
        up.says(fault).await;
        up.stop();
    }
    // As it was: it goes on behind what was reserved.
    sql(&home, &put_back("newest")).await;
    let up = Up::of(&home).await;
    up.use_up(3, &mut seen).await;
    // Under a running server, too.
    sql(&home, "DELETE FROM counter_marks").await;
    up.says("have no mark of epoch").await;
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_without_marks_is_migrated_once_and_not_where_its_server_knows_that_there_were_some()
{
    let (home, _) = sent().await;
    sql(&home, "CREATE TABLE newest AS SELECT * FROM counter_marks").await;
    sql(&home, "DELETE FROM counter_marks WHERE reserved > 1").await;
    let refused = home.run("migrate", &[]).unwrap_err().to_string();
    assert!(refused.contains("take a higher epoch"), "{refused}");
    // As an older version left it: with marks of what was reserved, and no others.
    let older = "DELETE FROM counter_marks; \
                 INSERT INTO counter_marks SELECT * FROM newest WHERE reserved > 1;";
    sql(&home, older).await;
    fs::remove_file(home.places().data.join("counter-marks")).unwrap();
    let found = home.run("check-config", &[]).unwrap_err().to_string();
    assert!(found.contains("run `kms-server migrate`"), "{found}");
    let up = Up::of(&home).await;
    assert_eq!(up.send().await.verdict, Verdict::Ok);
    up.says("run `kms-server migrate` once").await;
    up.stop();
    // What the server has seen of them meanwhile is none of those that are missing.
    let told = home.run("migrate", &[]).unwrap();
    assert!(told.contains("blocks whose counters begin"), "{told}");
    let refused = home.run("migrate", &[]).unwrap_err().to_string();
    assert!(refused.contains("nothing to do"), "{refused}");
    let begun =
        "SELECT count(*) FROM audit_events WHERE instr(body, CAST('Counters/Begin' AS BLOB)) > 0";
    assert_eq!(count(&home, begun).await, 1, "one event says what migrate began");
    let up = Up::of(&home).await;
    assert_eq!(up.send().await.verdict, Verdict::Ok);
    assert_eq!(up.client.site_status().await.unwrap().faults, [""; 0]);
    up.stop();
}

async fn count(site: &Site, query: &'static str) -> i64 {
    let options = SqliteConnectOptions::new().filename(site.places().data.join("kms.db"));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap()
}

/// `data_dir` is lost, and with it what this server has seen.
#[tokio::test(flavor = "multi_thread")]
async fn invariant_3_counters_that_the_other_site_remembers_do_not_begin_again() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::make(dir.path(), &programs(), &SiteOptions::default()).unwrap();
    let (a, b) = pair.start().unwrap();
    let at_a = client(&pair.a, Role::Dev).await;
    add(&at_a, &[line(1)]).await;
    declare(&at_a).await;
    eventually("something is sent", async || send(&at_a).await.verdict == Verdict::Ok).await;
    eventually("the other site has the mark", async || {
        count(&pair.b, "SELECT count(*) FROM witnessed_marks").await > 0
    })
    .await;
    a.stop().unwrap();
    sql(&pair.a, "DELETE FROM counter_marks").await;
    fs::remove_file(pair.a.places().data.join("counter-marks")).unwrap();
    let refused = pair.a.run("migrate", &[]).unwrap_err().to_string();
    assert!(refused.contains("the other site remembers counters"), "{refused}");
    assert_eq!(count(&pair.a, "SELECT count(*) FROM counter_marks").await, 0);
    b.stop().unwrap();
    let refused = pair.a.run("migrate", &[]).unwrap_err().to_string();
    assert!(refused.contains("can't say whether counters"), "{refused}");
    assert_eq!(count(&pair.a, "SELECT count(*) FROM counter_marks").await, 0);
}
