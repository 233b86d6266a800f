"""Is this run still sound? Numbers in, a sentence out."""
import math
from dataclasses import dataclass, field

HORIZON = 200  # updates, of the moving mean of the loss
PATIENCE = 500  # updates in a row that the mean may be too high
WORSE_THAN_BEST = 1.3  # times the best mean
WORSE_THAN_CHANCE = 1.05  # times the loss of a guess
WORSE_EVALUATION = 1.5  # times the best held-out loss
PATIENCE_EVALUATIONS = 3  # evaluations in a row
SKIPS_IN_A_ROW = 3  # updates whose gradient was not finite
SKIPS_IN_A_THOUSAND = 10


@dataclass
class Guard:
    """
    The divergence guard. What it remembers is in every checkpoint, so that it also trips in a job
    that is restarted every few hundred updates. Losses are undivided means over all ranks.
    """
    max_iters: int
    chance: float | None = None  # nats: the loss of a guess; None if it is no cross-entropy
    best_loss: float = math.inf  # held out
    best_iter: int = 0
    ema: float = 0.0
    seen: int = 0
    best_ema: float = math.inf
    above_best: int = 0
    above_chance: int = 0
    bad_evals: int = 0
    skipped: list = field(default_factory=list)  # the last updates whose gradient was not finite
    rate: float = 1.0  # factor of the learning rate, halved by each rollback
    rollbacks: int = 0

    def state_dict(self):
        state = {k: v for k, v in vars(self).items() if k not in ('max_iters', 'chance')}
        return {**state, 'skipped': list(self.skipped)}

    def load_state_dict(self, state):
        vars(self).update(state)
        self.skipped = list(self.skipped)

    def check_gradient(self, it):
        """For an update whose gradient is not finite. -> why the run must stop, or ''."""
        self.skipped = [i for i in self.skipped if i > it - 1000] + [it]
        in_a_row = self.skipped[-SKIPS_IN_A_ROW:] == list(range(it - SKIPS_IN_A_ROW + 1, it + 1))
        if in_a_row or len(self.skipped) >= SKIPS_IN_A_THOUSAND:
            return (f'gradients were not finite in updates {self.skipped}\n'
                    'lower learning_rate; --init_from=resume')
        return ''

    def check_update(self, loss):
        """Takes the loss of an update. -> the rule that the run breaks, in words, or ''."""
        self.seen += 1
        # at first a plain mean, so that there is no bias to correct
        self.ema += (loss - self.ema) / min(HORIZON, self.seen)
        if self.seen <= min(1000, self.max_iters // 50):  # the beginning says little
            return ''
        self.best_ema = min(self.best_ema, self.ema)
        too_high = self.ema > WORSE_THAN_BEST * self.best_ema
        self.above_best = self.above_best + 1 if too_high else 0
        guessing = bool(self.chance) and self.ema > WORSE_THAN_CHANCE * self.chance
        self.above_chance = self.above_chance + 1 if guessing else 0
        if self.above_chance >= PATIENCE:
            return (f'the mean loss {self.ema:.4f} was above chance, {self.chance:.4f}, '
                    f'for {PATIENCE} updates')
        if self.above_best >= PATIENCE:
            return (f'the mean loss {self.ema:.4f} was {WORSE_THAN_BEST} times its best, '
                    f'{self.best_ema:.4f}, for {PATIENCE} updates')
        return ''

    def is_best(self, val_loss, it):
        """Is this held-out loss the lowest so far? It is remembered."""
        if val_loss < self.best_loss:  # False for NaN
            self.best_loss, self.best_iter = val_loss, it
            return True
        return False

    def check_evaluation(self, val_loss):
        """Takes a held-out loss. -> the rule that the run breaks, in words, or ''."""
        bad = val_loss > WORSE_EVALUATION * self.best_loss
        self.bad_evals = self.bad_evals + 1 if bad else 0
        if self.bad_evals >= PATIENCE_EVALUATIONS:
            return (f'the held-out loss {val_loss:.4f} was {WORSE_EVALUATION} times its best, '
                    f'{self.best_loss:.4f}, in {PATIENCE_EVALUATIONS} evaluations running')
        return ''
