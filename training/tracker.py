"""Weights & Biases: the rows of log.csv, elsewhere. It may refuse a run before it begins; from then
on the run is the same without it."""
from configurator import ConfigError


class Tracker:
    """
    A run of W&B if config['wandb_log'], else nothing. run_id: of the run to go on with, '' for a
    new one; id: what it is then. Raises ConfigError if W&B is asked for and cannot be used, but for
    a network that is down: then the run goes on without it, and says so.
    """

    def __init__(self, config, stage, run_id):
        self.run, self.id = None, run_id
        if not config['wandb_log']:
            return
        try:
            import wandb
            init = wandb.init  # a folder ./wandb, as W&B leaves it, can be imported and is not it
        except Exception as e:
            raise ConfigError(f'wandb_log=True: wandb cannot be imported ({one_line(e)})\n'
                              'pip install wandb, or --wandb_log=False') from None
        try:
            self.run = init(project=config['wandb_project'], name=f'{config["out_dir"]}/{stage}',
                            config=config, id=run_id or None, resume='allow')
            # what a rollback or a resumed run does again has a smaller iter, which W&B would
            # refuse as its own step
            self.run.define_metric('*', step_metric='iter')
            self.id = self.run.id
        except Exception as e:  # whatever it raises, it is not this project's
            if is_refusal(e):
                raise ConfigError(f'wandb_log=True: W&B refuses: {one_line(e)}\nwandb login, or '
                                  'WANDB_MODE=offline before the command, or --wandb_log=False'
                                  ) from None
            self.give_up(e)

    def log(self, row):
        if self.run:
            try:
                self.run.log(row)
            except Exception as e:
                self.give_up(e)

    def finish(self):
        if self.run:
            try:
                self.run.finish()
            except Exception as e:
                self.give_up(e)

    def give_up(self, error):
        self.run = None
        print(f'  warning: W&B cannot be reached ({one_line(error)}); the run goes on without it',
              flush=True)


def one_line(error):
    return f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'


def is_refusal(error):
    """Is it the user's to mend? What is left is the network's."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {'OSError', 'JSONDecodeError'}:  # its own files; a page that a hotel sent instead
        return False
    words = 'api_key', 'api key', 'login', 'log in', 'permission', 'error 401', 'error 403'
    told = any(word in str(error).lower() for word in words)
    return bool(kinds & {'UsageError', 'AuthenticationError', 'TypeError', 'ValueError'}) or told
