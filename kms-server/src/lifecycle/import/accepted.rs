//! Sealed files that were taken: the domain remembers each, at both sites, so that no two files of a signer have one
//! number. The place of a line among all changes is the file's time, its number and the line; were the number not the
//! file's alone, a line could stand in the place of another one.

use crate::{
    keyring::Change,
    lifecycle::refusal::{Refusal, refusal},
};
use kms_core::{
    Record, RefusalCode,
    fact::{AcceptedFile, FILES_A_BLOCK, Fact, FactName},
};

/// The name of its record.
pub(super) fn name(file: &AcceptedFile) -> FactName {
    FactName::of_file(&file.signer, &file.file_id)
}

/// Stages that this file was taken, unless it is known: then nothing is written, and its lines are judged one by one,
/// as when it is sent again. `change` is of the block that its name leads to.
pub(super) fn remember(change: &mut Change, file: AcceptedFile) -> Result<(), Refusal> {
    match change.fact(&name(&file)) {
        Some(Fact::File(known)) if known.header == file.header => Ok(()),
        Some(_) => Err(refusal(
            RefusalCode::FileIdTaken,
            "another file of this signer has this number and was taken before: seal it again, which gives it \
             a number of its own",
        )),
        None if change.facts(FactName::FILE) >= FILES_A_BLOCK => Err(refusal(
            RefusalCode::FilesFull,
            format!(
                "{FILES_A_BLOCK} files are remembered where this one belongs, and that is the most: seal it again, \
                 which gives it another place"
            ),
        )),
        None => {
            change.put(Record::Fact(Fact::File(file)));
            Ok(())
        }
    }
}
