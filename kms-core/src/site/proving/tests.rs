use super::*;
use crate::{Position, Sequence, moment::Moment};

const AGE: Duration = Duration::from_millis(5_000);
const BLOCKS: u32 = 16;

fn at(unix_ms: u64, ms: u64) -> Stamp {
    Stamp { unix_ms, moment: Moment::from_ms(ms) }
}

/// A moment at which both clocks are right.
fn after(ms: u64) -> Stamp {
    at(1_000_000 + ms, ms)
}

fn mark(block: u32) -> BlockMark {
    let position = Position { epoch: Epoch(2), sequence: Sequence(1) };
    BlockMark { block: BlockNo(block), position, digest: [7; 32] }
}

fn asking(epoch: u64) -> Proofs {
    let mut proofs = Proofs::new(BlockCount::new(BLOCKS).unwrap(), AGE);
    proofs.stand(Epoch(epoch));
    proofs.begin_round();
    proofs
}

fn prove_all(proofs: &mut Proofs, question: &Question) {
    let proved = |block| (BlockNo(block), Outcome::Proved(mark(block)));
    (0..BLOCKS).map(proved).for_each(|(block, outcome)| proofs.take(question, block, outcome));
}

fn report(readiness: &Readiness) -> SignedReadiness {
    let [site, by] = ["south", "north"].map(str::to_owned);
    let about = About { domain: DomainId([1; 16]), site, by, differences: Vec::new() };
    SignedReadiness { report: readiness.report(about), signature: [0; 64] }
}

/// All blocks were asked for and proved at one moment, and the report was learned of at another one.
fn learned(epoch: u64, asked: Stamp, reported: Stamp, here: Stamp) -> KnownReports {
    let mut proofs = asking(epoch);
    let question = proofs.question(asked);
    prove_all(&mut proofs, &question);
    let mut reports = KnownReports::default();
    reports.learn(&report(&proofs.sum(reported, None)), (Epoch(epoch), None), here);
    reports
}

#[test]
fn invariant_11_a_proof_is_as_old_as_its_question_whenever_it_was_looked_at() {
    let mut proofs = asking(2);
    let question = proofs.question(after(0));
    // The process was frozen between question and answer.
    prove_all(&mut proofs, &question);
    let sum = proofs.sum(after(5_000), None);
    assert_eq!((sum.proved, sum.oldest_ms, sum.keks), (BLOCKS, Some(1_000_000), true));
    assert!(report(&sum).report.is_complete());
    let late = proofs.sum(after(5_001), None);
    assert_eq!((late.proved, late.unproved, late.oldest_ms), (0, BLOCKS, None));
    assert!(!report(&late).report.is_complete());
}

#[test]
fn invariant_11_nothing_of_another_epoch_counts() {
    let mut proofs = asking(2);
    let old = proofs.question(after(0));
    prove_all(&mut proofs, &old);
    // Promoted again between two rounds.
    proofs.stand(Epoch(4));
    assert_eq!(proofs.sum(after(1), None).proved, 0);
    prove_all(&mut proofs, &old);
    assert_eq!((proofs.sum(after(1), None).proved, proofs.of(BlockNo(3))), (0, Outcome::Nothing));
    let question = proofs.question(after(2));
    prove_all(&mut proofs, &question);
    let sum = proofs.sum(after(3), None);
    assert_eq!((sum.proved, sum.epoch), (BLOCKS, Epoch(4)));

    let reports = learned(2, after(0), after(1), after(2));
    assert_eq!(reports.ready((Epoch(2), None), AGE, after(3)), Ok(()));
    let other = NotReady::OtherEpoch { of: Epoch(2), now: Epoch(4) };
    assert_eq!(reports.ready((Epoch(4), None), AGE, after(3)), Err(other));
}

#[test]
fn invariant_11_keks_are_shown_in_each_round_and_one_block_that_fails_is_enough() {
    let mut proofs = asking(2);
    let question = proofs.question(after(0));
    prove_all(&mut proofs, &question);
    proofs.begin_round();
    let sum = proofs.sum(after(1), Some("nobody answers".to_owned()));
    assert_eq!((sum.proved, sum.keks), (BLOCKS, false));
    assert_eq!(sum.failures, ["nobody answers"]);
    let question = proofs.question(after(2));
    proofs.take(&question, BlockNo(3), Outcome::Proved(mark(4)));
    proofs.take(&question, BlockNo(5), Outcome::Failed("the seal does not open".to_owned()));
    proofs.take(&question, BlockNo(6), Outcome::Proved(mark(6)));
    proofs.take(&question, BlockNo(7), Outcome::Nothing);
    proofs.take(&question, BlockNo(BLOCKS), Outcome::Proved(mark(BLOCKS)));
    let sum = proofs.sum(after(3), None);
    assert_eq!((sum.proved, sum.failed, sum.unproved, sum.keks), (BLOCKS - 2, 2, 0, true));
    let named = ["block 3: another one was proved", "block 5: the seal does not open"];
    assert_eq!(sum.failures, named);
    let mut reports = KnownReports::default();
    reports.learn(&report(&sum), (Epoch(2), None), after(3));
    let refused = reports.ready((Epoch(2), None), AGE, after(3)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "14 of 16 blocks are proved, 2 failed: block 3: another one was proved"
    );
    proofs.forget();
    assert_eq!(proofs.sum(after(3), None).unproved, BLOCKS);
}

#[test]
fn invariant_11_the_clock_that_says_more_tells_the_age() {
    let reports = learned(2, after(0), after(1_000), after(1_500));
    let ready = |now| reports.ready((Epoch(2), None), AGE, now);
    assert_eq!(ready(after(5_000)), Ok(()));
    let old = NotReady::Old { by: "north".to_owned(), age_ms: 5_001 };
    assert_eq!(ready(after(5_001)), Err(old));
    // The wall clock was put back: what has passed here counts.
    assert_eq!(ready(at(1_000_100, 5_500)), Ok(()));
    assert!(matches!(ready(at(1_000_100, 5_501)), Err(NotReady::Old { .. })));
    // The machine was paused, and its wall clock set afterwards.
    assert!(matches!(ready(at(1_005_001, 1_600)), Err(NotReady::Old { .. })));
    let ahead = ready(at(1_001_000 - KnownReports::AHEAD_MAX_MS - 1, 1_600)).unwrap_err();
    assert!(matches!(ahead, NotReady::Ahead { ahead_ms: 300_001, .. }), "{ahead}");
    assert_eq!(
        KnownReports::default().ready((Epoch(2), None), AGE, after(0)),
        Err(NotReady::Nothing)
    );
}

#[test]
fn an_older_report_changes_nothing_unless_the_newest_is_of_the_future_or_of_a_forgotten_epoch() {
    let of =
        |epoch, ms| report(&Readiness { at_ms: ms, epoch: Epoch(epoch), ..Readiness::default() });
    let mut reports = KnownReports::default();
    for (epoch, ms) in [(4, 100), (4, 100), (4, 99), (2, 500)] {
        reports.learn(&of(epoch, ms), (Epoch(4), None), at(200, 0));
        assert_eq!(reports.newest(), Some(&of(4, 100)));
    }
    assert_eq!(reports.complete(), None);
    let future = KnownReports::AHEAD_MAX_MS + 1_000;
    reports.learn(&of(4, future), (Epoch(4), None), at(future, 0));
    reports.learn(&of(4, 300), (Epoch(4), None), at(300, 0));
    assert_eq!(reports.newest(), Some(&of(4, 300)), "the clock was set right");
    // An epoch that the database has forgotten.
    reports.learn(&of(5, 301), (Epoch(5), None), at(301, 0));
    reports.learn(&of(4, 302), (Epoch(5), None), at(302, 0));
    assert_eq!(reports.newest(), Some(&of(5, 301)));
    reports.learn(&of(4, 302), (Epoch(4), None), at(302, 0));
    assert_eq!(reports.newest(), Some(&of(4, 302)));
    reports.learn(&of(5, 301), (Epoch(4), None), at(303, 0));
    assert_eq!(reports.newest(), Some(&of(4, 302)));
}

#[test]
fn only_who_writes_in_the_epoch_that_both_know_is_answered() {
    let card = |epoch, writes| PeerCard { epoch: Epoch(epoch), writes };
    assert_eq!(may_ask(card(2, false), card(2, true)), Ok(()));
    for asker in [card(2, false), card(4, true), card(1, true)] {
        assert_eq!(may_ask(card(2, false), asker), Err(NotTheWriter(Epoch(2))));
    }
    assert!(follows(card(2, true), card(2, false)));
    for prover in [card(2, true), card(3, false), card(1, false)] {
        assert!(!follows(card(2, true), prover));
    }
}

#[test]
fn invariant_11_what_two_tokens_opened_together_neither_of_them_has_proved() {
    let [one, other] = [1, 2].map(|n| Some(TokenId([n; 8])));
    let mut proofs = asking(2);
    let question = proofs.question(after(0));
    let half = |proofs: &mut Proofs, blocks: std::ops::Range<u32>| {
        blocks.for_each(|n| proofs.take(&question, BlockNo(n), Outcome::Proved(mark(n))));
    };
    proofs.answered_by(one);
    half(&mut proofs, 0..BLOCKS / 2);
    proofs.answered_by(other);
    half(&mut proofs, BLOCKS / 2..BLOCKS);
    let sum = proofs.sum(after(1), None);
    assert_eq!((sum.proved, sum.unproved, sum.token), (BLOCKS / 2, BLOCKS / 2, other));
    proofs.answered_by(other);
    half(&mut proofs, 0..BLOCKS / 2);
    let sum = proofs.sum(after(1), None);
    assert!(report(&sum).report.is_complete() && sum.token == other);
    // That its KEKs pass is to be shown by the very token, too.
    proofs.answered_by(None);
    assert!(!proofs.sum(after(1), None).keks);
}

#[test]
fn invariant_11_a_server_is_ready_by_a_report_about_its_own_token_alone() {
    let [one, other] = [1, 2].map(|n| TokenId([n; 8]));
    let of = |token, ms| {
        let mut proofs = asking(2);
        proofs.answered_by(Some(token));
        let question = proofs.question(after(ms));
        prove_all(&mut proofs, &question);
        report(&proofs.sum(after(ms), None))
    };
    let here = (Epoch(2), Some(one));
    let mut reports = KnownReports::default();
    reports.learn(&of(other, 10), here, after(10));
    let refused = NotReady::OtherToken { of: other, own: one };
    assert_eq!(reports.ready(here, AGE, after(11)), Err(refused));
    // Of another site any token counts: which one it is stands in the report.
    assert_eq!(reports.ready((Epoch(2), None), AGE, after(11)), Ok(()));
    reports.learn(&of(one, 5), here, after(12));
    assert_eq!(reports.ready(here, AGE, after(13)), Ok(()));
    reports.learn(&of(other, 20), here, after(20));
    assert_eq!(reports.newest(), Some(&of(one, 5)), "the other token's says nothing of this one");
    assert_eq!(reports.complete(), Some(&of(one, 5)));
}
