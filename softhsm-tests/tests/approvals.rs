//! Two people at two servers of one site, over one PostgreSQL, as real processes: asked at one, approved at the other,
//! made once at any; what somebody put into the database is refused by name; a server that is killed between the use of
//! an approval and its call has used it up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;
#[path = "../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;

use std::{fs, sync::Arc};

use common::{
    Home, blank_home, copy, eventually,
    fleet::{id, line},
};
use postgres_common::{Cluster, USER};
use softhsm_tests::{AmiTool, Role, Running, settings::quoted};
use sqlx::Connection as _;

const CALLS: &str = "[\"Meters/DeleteMeter\"]";

fn blank(cluster: &Cluster, tokens: Option<&Home>) -> Home {
    let tokens = tokens.map(|first| quoted(&first.places().tokens.display().to_string()));
    let (host, port) = (cluster.sockets().display().to_string(), cluster.port().to_string());
    let (host, user) = (quoted(&host), quoted(USER));
    let mut settings = vec![
        ("rpc", "dual_control", CALLS),
        // Tables are signed soon.
        ("audit", "checkpoint_interval_s", "1"),
        ("store", "kind", "\"postgresql\""),
        ("store", "path", ""),
        ("store", "host", &host),
        ("store", "port", &port),
        ("store", "database", "\"ami\""),
        ("store", "user", &user),
        ("store", "allow_no_tls", "true"),
    ];
    if let Some(tokens) = &tokens {
        settings.push(("hsm", "token_dir", tokens));
    }
    blank_home(&settings)
}

/// A cluster, and the homes of two servers over it.
fn site() -> (Cluster, [Home; 2]) {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let first = blank(&cluster, None);
    first.init().unwrap();
    let second = blank(&cluster, Some(&first));
    for part in ["secrets", "certificates"] {
        let target = second.places().dir.join(part);
        fs::remove_dir_all(&target).unwrap();
        copy(&first.places().dir.join(part), &target);
    }
    fs::copy(&first.places().softhsm_conf, &second.places().softhsm_conf).unwrap();
    (cluster, [first, second])
}

/// The two people at one server.
struct Node {
    running: Running,
    admin: Arc<AmiTool>,
    approver: AmiTool,
}

impl Node {
    fn start(home: &Home) -> Self {
        let running = home.start().unwrap();
        let [admin, approver] = [Role::AmiAdmin, Role::Approver].map(|role| home.ami_tool(role));
        Self { running, admin: Arc::new(admin), approver }
    }

    fn import(&self, meters: std::ops::Range<u64>) {
        let lines: Vec<String> = meters.map(line).collect();
        let import = ["meter", "import", "-", "--format", "jsonl"];
        let (code, said) = run(&self.admin, &import, &lines.join("\n"));
        assert_eq!(code, Some(0), "{said}");
    }

    /// Is refused, and hears under which number the deletion waits.
    #[track_caller]
    fn asks(&self, meter: &str) -> String {
        let said = self.is_refused(meter, "SECOND_PERSON_NEEDED");
        let (_, rest) = said.split_once("(ami-tool approvals approve ").expect(&said);
        rest.chars().take_while(char::is_ascii_digit).collect()
    }

    #[track_caller]
    fn is_refused(&self, meter: &str, word: &str) -> String {
        let (code, said) = run(&self.admin, &["meter", "delete", meter, "--yes", "--json"], "");
        assert!(code != Some(0) && said.contains(word), "{word}: {code:?} {said}");
        said
    }

    #[track_caller]
    fn approves(&self, number: &str) {
        let (code, said) = run(&self.approver, &["approvals", "approve", number, "--yes"], "");
        assert_eq!(code, Some(0), "{said}");
    }

    #[track_caller]
    fn makes(&self, meter: &str) {
        let (code, said) = run(&self.admin, &["meter", "delete", meter, "--yes"], "");
        assert_eq!(code, Some(0), "{said}");
    }

    fn has(&self, meter: &str) -> bool {
        run(&self.admin, &["meter", "get", meter], "").0 == Some(0)
    }
}

/// As somebody who writes to the database.
fn at(cluster: &Cluster, statement: &str) {
    cluster.sql("ami", &format!("SET search_path = ami_kms; {statement}"));
}

/// Exit code, and all that was said.
fn run(tool: &AmiTool, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let output = tool.run(arguments, input).unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_call_is_asked_at_one_server_approved_at_another_and_made_once_at_any() {
    let (_cluster, homes) = site();
    let [one, two] = homes.each_ref().map(Node::start);
    one.import(1..4);
    // Made at the first, at the second, and not again at either.
    for (n, maker, other) in [(1, &one, &two), (2, &two, &one)] {
        let meter = id(n);
        let number = one.asks(&meter);
        assert_eq!(two.asks(&meter), number, "it is the same call at both");
        two.approves(&number);
        maker.makes(&meter);
        assert!(!other.has(&meter));
        assert_ne!(other.asks(&meter), number);
        assert_ne!(maker.asks(&meter), number);
    }
    // Neither server's end takes it away.
    let number = one.asks(&id(3));
    assert!(one.running.stop().unwrap().success());
    two.approves(&number);
    two.running.kill_9().unwrap();
    let two = Node::start(&homes[1]);
    two.makes(&id(3));
    assert!(two.running.stop().unwrap().success());
}

#[test]
fn invariant_5_an_approval_that_was_changed_copied_or_put_back_is_refused_by_name() {
    let (cluster, homes) = site();
    let [one, two] = homes.each_ref().map(Node::start);
    one.import(1..5);
    // Changed: a bit of what is asked.
    let number = one.asks(&id(1));
    two.approves(&number);
    let change = "UPDATE approvals SET body = set_byte(body, 40, get_byte(body, 40) # 1)";
    at(&cluster, change);
    one.is_refused(&id(1), "APPROVAL_CHANGED");
    let again = one.asks(&id(1));
    assert_ne!(again, number, "what was found changed is gone");
    // Copied: the approval of one call, put under another one's name.
    let other = one.asks(&id(2));
    two.approves(&again);
    let copied = format!(
        "UPDATE approvals SET body = it.body, signature = it.signature \
         FROM (SELECT body, signature FROM approvals WHERE number = {again}) it WHERE number = {other}"
    );
    at(&cluster, &copied);
    two.is_refused(&id(2), "APPROVAL_CHANGED");
    // A second person does not approve what somebody else wrote, either.
    let other = one.asks(&id(2));
    at(&cluster, &copied.replace(&format!("number = {again})"), "number = 0)"));
    at(&cluster, &format!("UPDATE approvals SET number = 7 WHERE number = {other}"));
    let (code, said) = run(&two.approver, &["approvals", "approve", "7", "--yes"], "");
    assert!(code != Some(0) && said.contains("was not signed by the site's token"), "{said}");
    // Put back: used at one server, and used up for the other one, too, and after a restart.
    at(&cluster, "CREATE TABLE kept AS SELECT * FROM approvals");
    one.makes(&id(1));
    let back =
        "INSERT INTO approvals SELECT * FROM kept WHERE name NOT IN (SELECT name FROM approvals)";
    at(&cluster, back);
    two.is_refused(&id(1), "APPROVAL_USED");
    at(&cluster, back);
    one.is_refused(&id(1), "APPROVAL_USED");
    two.running.kill_9().unwrap();
    let two = Node::start(&homes[1]);
    at(&cluster, back);
    two.is_refused(&id(1), "APPROVAL_USED");
    // And where its use was cut out of the log, nobody can tell, and nothing is done.
    at(&cluster, back);
    one.running.kill_9().unwrap();
    at(&cluster, "DELETE FROM audit_events WHERE position('Approvals/Use'::bytea IN body) > 0");
    two.is_refused(&id(1), "AUDIT_NOT_WRITABLE");
    two.running.kill_9().unwrap();
}

#[test]
fn invariant_5_an_approval_is_not_used_in_a_chain_that_nobody_would_miss() {
    let (_cluster, homes) = site();
    let one = Node::start(&homes[0]);
    one.import(1..3);
    let number = one.asks(&id(1));
    one.approves(&number);
    // It began after that: were the call made here, its use would go with this server's whole chain.
    let two = Node::start(&homes[1]);
    two.is_refused(&id(1), "SERVER_YOUNGER");
    assert!(two.has(&id(1)));
    let again = two.asks(&id(1));
    assert_ne!(again, number, "it is asked anew");
    one.approves(&again);
    two.makes(&id(1));
    for node in [one, two] {
        assert!(node.running.stop().unwrap().success());
    }
}

/// The last events of a chain, from number `$from` on, taken back as if they had never been.
const TAKEN_BACK: &str = "DELETE FROM audit_checkpoints WHERE node = $node AND sequence > $from; \
     DELETE FROM audit_events WHERE node = $node AND sequence > $from; \
     UPDATE audit_chains SET (sequence, hash) = (SELECT sequence, hash FROM audit_events \
     WHERE node = $node AND sequence = $from) WHERE node = $node";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_5_a_use_that_another_server_signed_for_and_that_is_gone_lets_no_call_through() {
    let (cluster, homes) = site();
    let [one, two] = homes.each_ref().map(Node::start);
    one.import(1..3);
    let number = one.asks(&id(1));
    one.approves(&number);
    at(&cluster, "CREATE TABLE kept AS SELECT * FROM approvals");
    let mut beside = cluster.beside("ami").await;
    let node = fs::read_to_string(homes[1].places().data.join("node-id")).unwrap();
    let node = format!("'\\x{}'::bytea", node.trim());
    let end = async |beside: &mut sqlx::PgConnection| -> i64 {
        let query = format!("SELECT sequence FROM ami_kms.audit_chains WHERE node = {node}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(beside).await.unwrap()
    };
    let from = end(&mut beside).await;
    two.makes(&id(1));
    assert!(end(&mut beside).await > from);
    two.running.kill_9().unwrap();
    // The first server signs for what the second one wrote, and sees it so.
    let tables = "SELECT number FROM ami_kms.head_table";
    let before: i64 = sqlx::query_scalar(tables).fetch_one(&mut beside).await.unwrap();
    one.import(2..3);
    for _ in 0..600 {
        let now: i64 = sqlx::query_scalar(tables).fetch_one(&mut beside).await.unwrap();
        if now >= before + 2 {
            break;
        }
        one.import(2..3);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    at(&cluster, &TAKEN_BACK.replace("$node", &node).replace("$from", &from.to_string()));
    at(&cluster, "INSERT INTO approvals SELECT * FROM kept");
    one.is_refused(&id(1), "AUDIT_NOT_WRITABLE");
    one.running.kill_9().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_between_the_use_and_the_call_has_used_the_approval_up() {
    let (cluster, homes) = site();
    let [one, two] = homes.each_ref().map(Node::start);
    one.import(1..2);
    let meter = id(1);
    let number = one.asks(&meter);
    two.approves(&number);
    // The call stands behind this lock, once its approval was used.
    let mut lock = cluster.beside("ami").await;
    let mut held = lock.begin().await.unwrap();
    sqlx::raw_sql("SELECT 1 FROM ami_kms.blocks FOR UPDATE").execute(&mut *held).await.unwrap();
    let call = {
        let (admin, meter) = (Arc::clone(&one.admin), meter.clone());
        std::thread::spawn(move || run(&admin, &["meter", "delete", &meter, "--yes"], ""))
    };
    eventually("the approval is used", async || {
        run(&two.approver, &["approvals", "list"], "").1.contains("nothing waits")
    })
    .await;
    one.running.kill_9().unwrap();
    held.rollback().await.unwrap();
    let (code, said) = call.join().unwrap();
    assert_ne!(code, Some(0), "{said}");
    // Nothing was done, and nothing is by that approval.
    assert!(two.has(&meter));
    assert_ne!(two.asks(&meter), number);
    let one = Node::start(&homes[0]);
    assert_ne!(one.asks(&meter), number);
    assert!(one.has(&meter));
    assert!(one.running.stop().unwrap().success());
    assert!(two.running.stop().unwrap().success());
}

/// A row that comes back as often as it is deleted; of two servers one deletes it after the other one's commit.
const COMES_BACK: &str = "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
     INSERT INTO ami_kms.approvals SELECT OLD.*; RETURN NULL; END $$; \
     CREATE TRIGGER back AFTER DELETE ON approvals FOR EACH ROW EXECUTE FUNCTION back(); \
     CREATE FUNCTION queue() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
     PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$; \
     CREATE TRIGGER queue BEFORE DELETE ON approvals FOR EACH STATEMENT EXECUTE FUNCTION queue()";
const WAITING: &str =
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_5_a_row_that_is_put_back_while_two_servers_use_it_lets_one_call_through_at_most()
{
    let (cluster, homes) = site();
    let [one, two] = homes.each_ref().map(Node::start);
    one.import(1..2);
    let meter = id(1);
    let number = one.asks(&meter);
    two.approves(&number);
    at(&cluster, COMES_BACK);
    // Both have found it approved and unused, and stand before its use.
    let (mut lock, mut beside) = (cluster.beside("ami").await, cluster.beside("ami").await);
    let mut held = lock.begin().await.unwrap();
    sqlx::raw_sql("SELECT pg_advisory_xact_lock(7)").execute(&mut *held).await.unwrap();
    let calls = [&one, &two].map(|node| {
        let (admin, meter) = (Arc::clone(&node.admin), meter.clone());
        std::thread::spawn(move || run(&admin, &["meter", "delete", &meter, "--yes", "--json"], ""))
    });
    for _ in 0..600 {
        let waiting: i64 = sqlx::query_scalar(WAITING).fetch_one(&mut beside).await.unwrap();
        if waiting == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    held.rollback().await.unwrap();
    let said = calls.map(|call| call.join().unwrap().1);
    let refused = said.iter().filter(|said| said.contains("APPROVAL_USED")).count();
    assert!(refused >= 1, "{said:?}");
    for node in [one, two] {
        assert!(node.running.stop().unwrap().success());
    }
}
