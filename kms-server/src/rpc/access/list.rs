//! The list of who may call what, for people: `docs/ACCESS.md` is written from here.

use super::{policy::Role, verb::Verb};

const HEAD: &str = "\
# Who may call what

Written by `UPDATE_DOCS=1 cargo test -p kms-server --test access_list` from
`kms-server/src/rpc/access/{verb,policy}.rs`; a test compares. `softhsm-tests/tests/matrix.rs` tries every cell on a
running server, against a table of its own, and every kind of stranger.

This is what roles may call by default. `[rpc.grants]` replaces the row of a role, `rpc.callers` says who has
which roles, and a caller with several may what any of them may. Where the last column says so,
`rpc.dual_control` can ask for a second person, or one is always asked for; for `Site/Promote` it is, where an epoch to go
above is named, unless the site was put back and that epoch is near.

";

const TAIL: &str = "
`Health` and `Reflection`, the standard services, are open to every caller that the policy names. Whoever it
does not name is refused `UNKNOWN_CALLER` whatever he asks for, and whoever has no good certificate never gets
as far: TLS 1.3 with a certificate of an authority in `rpc.tls.client_ca`, for client authentication, within
its time, and in no revocation list.
";

/// The document.
pub fn markdown() -> String {
    let mut text = HEAD.to_owned();
    let columns: Vec<String> = Role::ALL.iter().map(|role| format!("`{role}`")).collect();
    text += &format!(
        "| call | {} | two people |\n|---|{}---|\n",
        columns.join(" | "),
        "---|".repeat(Role::ALL.len())
    );
    for verb in Verb::GRANTABLE {
        let cells = Role::ALL.map(|role| if role.may_by_default(*verb) { "yes" } else { "" });
        let cells: String = cells.iter().map(|cell| format!(" {cell} |")).collect();
        let two = match (verb.always_needs_two_people(), verb.may_need_two_people()) {
            (true, _) => "always",
            (false, true) => "possible",
            (false, false) => "",
        };
        text += &format!("| `{verb}` |{cells} {two} |\n");
    }
    text + TAIL
}
