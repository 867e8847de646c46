from configs import default


def get_config():
    config = default.get_config()
    config.data.dataset = "synthetic_lesions"
    config.train.max_minutes = 3.5
    return config
