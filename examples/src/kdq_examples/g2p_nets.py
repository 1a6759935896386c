"""The net of the workload `g2p`: that of g2p-en."""

from __future__ import annotations

from torch import Tensor, nn

LETTERS, PHONEMES, SIZE, WIDTH = 29, 74, 256, 256
END_OF_WORD = 2


class G2pNet(nn.Module):
    """A GRU reads the letters; another GRU starts from its last state and reads the phonemes so far.

    g2p-en computes the same with GRU cells, step by step. No step depends on a later one, so the logits of a place are
    right whatever follows it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder_table, self.decoder_table = nn.Embedding(LETTERS, SIZE), nn.Embedding(PHONEMES, SIZE)
        self.encoder, self.decoder = nn.GRU(SIZE, WIDTH, batch_first=True), nn.GRU(SIZE, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, PHONEMES)

    def forward(self, letters: Tensor, phonemes: Tensor) -> Tensor:
        """Return the logits of each next phoneme.

        Args:
            letters: int64 `[B, L]`, each row with one end of word.
            phonemes: int64 `[B, T]`, from the start on.

        Returns:
            Logits `[B, T, 74]`.
        """
        states, _ = self.encoder(self.encoder_table(letters))
        last = (states * (letters == END_OF_WORD).unsqueeze(-1).to(states.dtype)).sum(1)
        answers, _ = self.decoder(self.decoder_table(phonemes), last.unsqueeze(0))
        logits: Tensor = self.head(answers)
        return logits
